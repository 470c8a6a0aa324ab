//! What tests share: the adapters that GPU tests run on, how much of a test runs, and what tests expect.
#![allow(dead_code, reason = "each test binary uses its own part")]

mod absence;
pub(crate) mod config;
pub(crate) mod results;

use std::cell::OnceCell;
use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use wgrnn::{Context, Error, Result};

#[cfg(feature = "gpu")]
use wgrnn::{plan::DeviceKind, wgpu};

/// Whether everything is to run, with `WGRNN_TESTS=all`; else each kernel, cell, option and public call once.
pub(crate) fn thorough() -> bool {
    std::env::var("WGRNN_TESTS").as_deref() == Ok("all")
}

/// All of `items` where everything is to run; else every `of`th from the `nth` on, so that the shares of all `nth`
/// below `of` are the whole. For what takes a shader of its own on an adapter, where compiling is most of the time: for
/// llvmpipe a kernel of all steps takes 0.3 to 1.1 s of a core, a form of a step or a tile of a product 0.3 s, a plain
/// product 0.15 s, anything else less than 0.1 s, nearly all of it at the first dispatch.
pub(crate) fn share<T>(items: Vec<T>, nth: usize, of: usize) -> Vec<T> {
    match thorough() {
        true => items,
        false => items.into_iter().skip(nth % of).step_by(of).collect(),
    }
}

/// [`share`] on an adapter, and everything on the CPU, where nothing is compiled.
pub(crate) fn share_on<T>(context: &Context, items: Vec<T>, nth: usize, of: usize) -> Vec<T> {
    match context.is_gpu() {
        true => share(items, nth, of),
        false => items,
    }
}

/// None, since this build has no GPU backend.
#[cfg(not(feature = "gpu"))]
pub(crate) fn adapters() -> Vec<Context> {
    absence::note("this build has no GPU backend");
    Vec::new()
}

/// Every adapter of this machine, opened anew; with `WGRNN_RULES=gpu` all are planned for as hardware is. Where there is
/// none, the test is noted as one that ran on none, and fails if `WGRNN_REQUIRE_GPU=1`.
#[cfg(feature = "gpu")]
pub(crate) fn adapters() -> Vec<Context> {
    let open = |adapter: &wgpu::Adapter| match pollster::block_on(Context::from_adapter(adapter)) {
        Ok(context) => under_rules(context),
        Err(e) => panic!("adapter {} does not open: {e}", adapter.get_info().name),
    };
    present().iter().map(open).collect()
}

/// Every adapter of this machine, not opened; where there is none, as [`adapters`].
#[cfg(feature = "gpu")]
pub(crate) fn present() -> Vec<wgpu::Adapter> {
    let found = pollster::block_on(Context::adapters());
    if found.is_empty() {
        assert!(
            std::env::var("WGRNN_REQUIRE_GPU").as_deref() != Ok("1"),
            "WGRNN_REQUIRE_GPU=1, and this machine has no adapter"
        );
        absence::note("this machine has no adapter");
    }
    found
}

/// The devices of [`adapters`], lent to the thread that asks: no other has them at the same time, and the next one finds
/// the pipelines that were built on them. What a test takes a device away from, it opens for itself.
pub(crate) fn kept() -> Vec<Context> {
    static IDLE: Mutex<Vec<Vec<Context>>> = Mutex::new(Vec::new());

    fn idle() -> std::sync::MutexGuard<'static, Vec<Vec<Context>>> {
        IDLE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handed back when its thread ends.
    struct Lent(Vec<Context>);

    impl Drop for Lent {
        fn drop(&mut self) {
            if !self.0.is_empty() {
                idle().push(std::mem::take(&mut self.0));
            }
        }
    }

    thread_local! {
        static OWN: OnceCell<Lent> = const { OnceCell::new() };
    }
    let lent = OWN.with(|own| {
        let take = || {
            let found = idle().pop();
            Lent(found.unwrap_or_else(adapters))
        };
        own.get_or_init(take).0.clone()
    });
    match lent.is_empty() {
        // Notes this test too.
        true => adapters(),
        false => lent,
    }
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
/// software adapter takes is its compiler, which has one thread for each device: every share has devices of its own.
pub(crate) fn spread<T: Copy + Send + Sync, R: Send>(
    items: &[T],
    work: impl Fn(Vec<T>) -> R + Sync,
) -> Vec<R> {
    let threads = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(4);
    let test = absence::test();
    thread::scope(|scope| {
        let share = |nth| items.iter().skip(nth).step_by(threads).copied().collect();
        let work = &work;
        let running: Vec<_> = (0..threads)
            .map(|nth| {
                let share = share(nth);
                let named = thread::Builder::new().name(test.clone());
                named.spawn_scoped(scope, move || work(share)).unwrap()
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
    let open = |adapter: &wgpu::Adapter| {
        let opened = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("the host"),
            required_limits: wgpu::Limits::default(),
            ..Default::default()
        });
        pollster::block_on(opened).unwrap()
    };
    present().iter().map(open).collect()
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
