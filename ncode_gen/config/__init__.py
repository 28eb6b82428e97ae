"""What a model file may say: one frozen dataclass a kind of component, and the registry of kinds."""
