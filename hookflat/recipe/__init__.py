"""TOML text to checked plugin instances."""
