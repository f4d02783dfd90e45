//! Charter to follow.
