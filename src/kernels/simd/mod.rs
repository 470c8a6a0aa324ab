//! The fast twins of the recurrent kernels: `f32`, vectors, threads. The plain twins stay the
//! definition; what is here agrees with them up to rounding.
//!
//! A call runs all steps of a level. [`pack`] has the weights' layout, [`blocks`] brings them
//! into it, [`product`] multiplies, and a
//! cell's file makes gates and states of the products; [`run`] puts them together, [`split`] and
//! [`team`] divide the work among threads, [`apart`] and [`shared`] see that they do not meet.

pub(crate) mod apart;
pub(crate) mod backward;
pub(crate) mod blocks;
pub(crate) mod forward;
pub(crate) mod gru;
pub(crate) mod lstm;
pub(crate) mod math;
pub(crate) mod pack;
pub(crate) mod product;
pub(crate) mod rnn;
pub(crate) mod run;
pub(crate) mod shared;
pub(crate) mod split;
pub(crate) mod team;
mod tile;

#[cfg(test)]
mod tests;
