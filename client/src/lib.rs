//! Placeholder charter; its owner replaces it.
