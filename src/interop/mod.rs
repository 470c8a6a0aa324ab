//! What others write or read: safetensors archives, reference cases, whole-file writes, and weights in
//! the layouts of other systems.

pub(crate) mod archive;
pub mod atomic;
pub mod case;
pub mod regular;
pub mod safetensors;
pub(crate) mod state_dict;
mod temporary;
mod unique;
pub mod weights;
