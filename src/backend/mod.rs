//! Running a plan: [`gpu`] records it into a command encoder, [`cpu`] calls the twins.

pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod gpu;
