//! The GPU backend: [`device`] opens adapters and keeps pipelines, [`recording`] turns a plan into
//! commands, [`calls`] submits them and moves data, [`timing`] measures them; [`lost`] says whether a device still works,
//! [`foreign`] whether what a host hands over is the device's, [`cooperative`] which matrices an adapter has.

mod calls;
mod cooperative;
mod device;
mod driver;
mod foreign;
mod lost;
mod recording;
mod timing;

pub(crate) use device::{Gpu, describe};
pub(crate) use recording::Recording;
pub(crate) use timing::{MAX_PASSES, Timestamps, each, total};
