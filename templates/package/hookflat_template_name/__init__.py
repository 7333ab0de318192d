"""template_name, a template kind for hookflat."""
