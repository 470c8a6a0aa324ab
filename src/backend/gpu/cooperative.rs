//! Cooperative matrices, which wgpu has as an experimental feature: with the crate's feature of that name.

use crate::plan::Cooperative;

/// The matrices of 16-bit floats with sums in `f32` that an adapter has, the larger ones first.
#[cfg(feature = "cooperative")]
pub(super) fn matrices(adapter: &wgpu::Adapter) -> Option<Cooperative> {
    use wgpu::CooperativeScalarType::{F16, F32};

    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16;
    if !adapter.features().contains(needed) {
        return None;
    }
    let known = adapter.cooperative_matrix_properties();
    let threads = adapter.get_info().subgroup_max_size;
    let has = |size: &u32| {
        let square =
            |p: &&wgpu::CooperativeMatrixProperties| [p.m_size, p.n_size, p.k_size] == [*size; 3];
        let mut fitting = known.iter().filter(square);
        fitting.any(|p| (p.ab_type, p.cr_type) == (F16, F32))
    };
    let size = [16, 8].into_iter().find(has)?;
    Some(Cooperative { size, threads })
}

/// None, without the crate's feature.
#[cfg(not(feature = "cooperative"))]
pub(super) fn matrices(_: &wgpu::Adapter) -> Option<Cooperative> {
    None
}

/// What a device is opened with to use them.
#[cfg(feature = "cooperative")]
#[allow(
    unsafe_code,
    reason = "wgpu asks whoever uses what is experimental to say so"
)]
pub(super) fn token(matrices: Option<Cooperative>) -> wgpu::ExperimentalFeatures {
    match matrices {
        // SAFETY: an experimental feature may have undefined behaviour where it is used wrongly; the one kernel
        // that does has its matrices inside workgroup memory and loads and stores them by whole subgroups.
        Some(_) => unsafe { wgpu::ExperimentalFeatures::enabled() },
        None => wgpu::ExperimentalFeatures::disabled(),
    }
}

/// Nothing, without the crate's feature.
#[cfg(not(feature = "cooperative"))]
pub(super) fn token(_: Option<Cooperative>) -> wgpu::ExperimentalFeatures {
    wgpu::ExperimentalFeatures::disabled()
}
