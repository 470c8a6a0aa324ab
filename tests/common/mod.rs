//! What tests share: the adapters that GPU tests run on, and what they expect.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod config;
pub(crate) mod results;

use std::panic::resume_unwind;
use std::thread::{self, ScopedJoinHandle};
use wgrnn::{Context, Error, Result};

#[cfg(feature = "gpu")]
use wgrnn::{plan::DeviceKind, wgpu};

/// Whether everything is to run, with `WGRNN_TESTS=all`; else each kernel, cell, option and public call once.
pub(crate) fn thorough() -> bool {
    std::env::var("WGRNN_TESTS").as_deref() == Ok("all")
}

/// None, since this build has no GPU backend.
#[cfg(not(feature = "gpu"))]
pub(crate) fn adapters() -> Vec<Context> {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("{test}: built without the feature gpu, so nothing ran on a GPU");
    Vec::new()
}

/// Every adapter of this machine, opened; with `WGRNN_RULES=gpu` all are planned for as hardware is. Where there is none,
/// the test says so, and fails if `WGRNN_REQUIRE_GPU=1`.
#[cfg(feature = "gpu")]
pub(crate) fn adapters() -> Vec<Context> {
    let found: Vec<Context> = pollster::block_on(async {
        let mut contexts = Vec::new();
        for adapter in Context::adapters().await {
            let name = adapter.get_info().name;
            match Context::from_adapter(&adapter).await {
                Ok(context) => contexts.push(under_rules(context)),
                Err(e) => panic!("adapter {name} does not open: {e}"),
            }
        }
        contexts
    });
    if found.is_empty() {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        assert!(
            std::env::var("WGRNN_REQUIRE_GPU").as_deref() != Ok("1"),
            "{test}: WGRNN_REQUIRE_GPU=1, and this machine has no adapter"
        );
        eprintln!("{test}: no adapter on this machine, so nothing ran on a GPU");
    }
    found
}

/// The context with plans by the rules that `WGRNN_RULES` names, if it does.
#[cfg(feature = "gpu")]
fn under_rules(context: Context) -> Context {
    let Ok(name) = std::env::var("WGRNN_RULES") else {
        return context;
    };
    let kind = DeviceKind::ALL.into_iter().find(|kind| kind.name() == name);
    let kind = kind.unwrap_or_else(|| panic!("WGRNN_RULES: no kind of device is called {name}"));
    context.planning_for(kind).unwrap()
}

/// Runs `work` on a few threads, each with a share of the items, and gives what each returned. Most of what a test on a
/// software adapter takes is its compiler, which has one thread. Every share opens contexts of its own, as a device builds
/// one pipeline at a time.
pub(crate) fn spread<T: Copy + Send + Sync, R: Send>(
    items: &[T],
    work: impl Fn(Vec<T>) -> R + Sync,
) -> Vec<R> {
    let threads = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(4);
    thread::scope(|scope| {
        let share = |nth| items.iter().skip(nth).step_by(threads).copied().collect();
        let work = &work;
        let running: Vec<_> = (0..threads)
            .map(|nth| {
                let share = share(nth);
                scope.spawn(move || work(share))
            })
            .collect();
        let all = running.into_iter().map(ScopedJoinHandle::join);
        all.map(|done| done.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

/// A device of every adapter with the limits that every WebGPU device has, and no feature.
#[cfg(feature = "gpu")]
pub(crate) fn portable_devices() -> Vec<(wgpu::Device, wgpu::Queue)> {
    // Says so, or fails, where there is no adapter.
    if adapters().is_empty() {
        return Vec::new();
    }
    let open = |adapter: &wgpu::Adapter| {
        let opened = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("the host"),
            required_limits: wgpu::Limits::default(),
            ..Default::default()
        });
        pollster::block_on(opened).unwrap()
    };
    let adapters = pollster::block_on(Context::adapters());
    adapters.iter().map(open).collect()
}

/// The error that was expected, which prints as one line.
#[track_caller]
pub(crate) fn refusal<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(e) => {
            let text = e.to_string();
            assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
            e
        }
    }
}
