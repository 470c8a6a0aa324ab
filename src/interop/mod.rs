//! Files that others write or read: safetensors archives, reference cases, and whole-file writes.

pub mod atomic;
pub mod case;
pub mod safetensors;
