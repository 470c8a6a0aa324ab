//! The GPU backend: [`device`] opens adapters and keeps pipelines, [`recording`] turns a plan into
//! commands.

mod device;
mod recording;

pub(crate) use device::{Gpu, describe};
pub(crate) use recording::Recording;
