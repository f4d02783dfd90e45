//! Placeholder charter; its owner replaces it.

pub mod group;
pub mod log;
