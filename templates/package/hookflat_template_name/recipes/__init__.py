"""The recipes of this package: every TOML file of this folder."""
