//! The GPU backend: [`device`] opens adapters and keeps pipelines, [`recording`] turns a plan into
//! commands, [`timing`] measures them; [`cooperative`] says which matrices an adapter has.

mod cooperative;
mod device;
mod recording;
mod timing;

pub(crate) use device::{Gpu, describe};
pub(crate) use recording::Recording;
pub(crate) use timing::{MAX_PASSES, Timestamps, each, total};
