//! GPU compute kernels for recurrent neural networks, on every GPU that wgpu reaches.
//!
//! wgrnn runs LSTM, GRU and plain RNN layers, forward and through back-propagation through time
//! (BPTT), as WGSL kernels recorded into the host's own command encoder, and runs the same plan on
//! the CPU in `f32` or `f64`.
//!
//! ```
//! use wgrnn::{Context, Lstm, Size, ndarray::Array3};
//!
//! # fn main() -> wgrnn::Result<()> {
//! let context = Context::open("auto")?; // a hardware GPU if there is one, else the CPU
//! let lstm = Lstm::new(8, 32).build(&context)?;
//!
//! // At once, with arrays:
//! let x = Array3::<f32>::ones((10, 2, 8)); // T, N, I
//! let out = lstm.forward(x.view(), None)?;
//! assert_eq!(out.y.dim(), (10, 2, 32));
//!
//! // Planned once and run often, with gradients:
//! let call = lstm.training(Size { steps: 10, batch: 2 })?;
//! call.x().write(&[1.0; 10 * 2 * 8])?;
//! call.forward()?;
//! call.dy()?.write(&[1.0; 10 * 2 * 32])?;
//! call.backward()?;
//! for (name, gradient) in call.gradients()? {
//!     println!("{name} {:?}", gradient.shape());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # From a call to a dispatch
//!
//! A call goes through three places: a [`Layer`] checks shapes; a [`plan::Plan`], built once, lists
//! the dispatches and the memory; a backend records it ([`Program::record`]) or runs it
//! ([`Program::run`]).
//!
//! | module | what is there |
//! |---|---|
//! | [`layer`] | [`Lstm`], [`Gru`], [`Rnn`]: weights, whole sequences, single steps |
//! | [`plan`] | the scheduler's data and how a layer becomes a list of steps |
//! | [`program`] | a plan bound to memory |
//! | [`kernel`], [`kernels`], [`mod@compose`] | what a kernel is, all of them, and how their text is put together |
//! | [`cell`] | a recurrent cell as data |
//! | [`context`], [`tensor`] | devices and memory |
//! | [`init`] | initial weights: PyTorch's, Xavier, orthogonal, identity, a forget bias |
//! | [`train`] | a language model, its training step, text and sampling |
//! | [`interop`] | safetensors files, weights of ONNX, Keras and cuDNN, solved reference cases |
//! | [`tune`] | measuring which choices are fastest on a device |
//! | [`certify`] | finding the kernels that compute wrongly on a device before their numbers are used |
//! | [`check`] | comparing GPU and CPU, with cases, kernel by kernel, step by step |
//!
//! # Notation
//!
//! T steps, N sequences, I inputs, H hidden units, P projected units (H without a projection), L
//! layers, D directions, G gates, V tokens. Arrays are row-major: x `[T, N, I]`, y `[T, N, D·P]`,
//! states `[L·D, N, P]` (h) and `[L·D, N, H]` (c). Weights have PyTorch's names, layout and gate order
//! (i, f, g, o and r, z, n). The gradient of a value has a `d` before its name.
//!
//! ```text
//! RNN    h' = a(W_ih x + b_ih + W_hh h + b_hh)
//! LSTM   i, f, o = σ(W_ih x + b_ih + W_hh h + b_hh)     g = tanh(…)
//!        c' = f c + i g                                  h' = o tanh c'
//! GRU    r, z = σ(…)   n = tanh(W_in x + b_in + r (W_hn h + b_hn))   h' = (1 − z) n + z h
//! ```
//!
//! What each option adds to them: [`Lstm`], [`Gru`], [`Rnn`] and [`Activation`] for the cell, [`Call`]
//! for what is done with it. Where PyTorch has an option, its result is the definition.
//!
//! | option | meaning |
//! |---|---|
//! | projection | h' = W_hr (o tanh c'), of P units |
//! | peepholes | i and f also see p ∘ c, and o sees p ∘ c' |
//! | coupled | f = 1 − i |
//! | clip | limits every pre-activation, after the peepholes; `cell_clip` limits c' before it is used |
//! | precision | W_ih, b_ih and W_hh are read as 16-bit floats, to which a copy of them is rounded; see [`Precision`] |
//! | activations | in 16 bits: each pre-activation is rounded once the input is projected, and in training what is kept of it once more; see [`Call::activations`] |
//! | reset before | n = tanh(W_in x + b_in + W_hn (r h) + b_hn) |
//! | lengths | past its length a sequence puts out 0 and keeps its state; the direction that runs from the end starts there |
//! | resets | the state is zeroed before a step, also past the length |
//! | burn-in | the first steps carry the state and have no gradient, nor does what flows into them |
//!
//! # Threads
//!
//! Any thread may call anything at any time. A call takes all memory that it touches before it begins and gives it back in
//! the end: calls that share memory, where one of them writes it, wait for each other, and others run at the same time.
//! What several threads leave is what they would leave in some order one after another; a call that is refused has changed
//! nothing. What a host records, it orders by its own submissions. Within a callback of wgpu, which runs inside another call
//! of its thread, and within a task of rayon's, which may, a call is refused that would have to wait for that one.
//!
//! # Numbers
//!
//! Sums are accumulated in `f32`, whatever the precision of weights and activations, in a fixed order: the same input on the same adapter gives the
//! same bits. A NaN propagates. What may differ between devices is bounded by
//! [`check::tolerance`].

// What a user can do wrong is an error; tests may panic.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod activation;
mod backend;
pub mod cell;
pub mod certify;
pub mod check;
pub mod compose;
pub mod context;
pub mod error;
mod host;
pub mod init;
pub mod interop;
pub mod kernel;
pub mod kernels;
pub mod layer;
mod machine;
mod memory;
pub mod plan;
pub mod program;
pub mod real;
pub mod rng;
pub mod tensor;
mod threads;
pub mod train;
pub mod tune;

pub use activation::{Activation, Function};
pub use context::{Context, Dtype};
pub use error::{Error, Result};
pub use layer::{
    Gru, Layer, Lstm, Nonlinearity, Output, Packing, Reset, Rnn, Sequence, State, Streams,
};
pub use plan::sequence::{Call, LayerSpec, Mode, Order, Precision, Size};
pub use program::Program;
pub use tensor::Tensor;

pub use ndarray;
#[cfg(feature = "gpu")]
pub use wgpu;

/// The README's examples, compiled as tests.
#[cfg(all(doctest, feature = "gpu"))]
#[doc = include_str!("../README.md")]
struct Readme;
