"""The FOCUS export before the specification's own validator."""
