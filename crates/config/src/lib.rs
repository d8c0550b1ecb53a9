//! cluster.toml: model and validation.
