//! Every shader, composed with every set of constants that its samples use: it must translate for
//! every API, and be what its descriptor says.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::LazyLock;

use naga::valid::{Capabilities, FunctionInfo, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ScalarKind, ShaderStage, StorageAccess, TypeInner, back};
use wgrnn::check::kernels::SIZES;
use wgrnn::kernel::{Access, Constant, Element, Kernel, compose};
use wgrnn::kernels::ALL;
use wgrnn::rng::Rng;

/// Sets of constants.
type Sets = BTreeSet<Vec<Constant>>;

/// The constants that the samples of a kernel set, in every combination that occurs, or in a dozen of
/// them.
fn constants(kernel: &'static Kernel) -> Sets {
    let hands_around = |set: &Vec<Constant>| {
        let mut of_set = set.iter();
        of_set.any(|(name, value)| *name == "SUBGROUP_SIZE" && *value > 0)
    };
    let (handing, others) = all_constants(kernel)
        .clone()
        .into_iter()
        .partition(hands_around);
    few(handing).into_iter().chain(few(others)).collect()
}

/// The constants of all samples of each kernel, made once for all tests.
static SETS: LazyLock<Vec<(&'static Kernel, Sets)>> = LazyLock::new(|| {
    let of_each = |kernels: Vec<&'static Kernel>| {
        let each = kernels.into_iter();
        each.map(|kernel| (kernel, sampled(kernel)))
            .collect::<Vec<_>>()
    };
    common::spread(ALL, of_each).concat()
});

fn all_constants(kernel: &'static Kernel) -> &'static Sets {
    let mut sets = SETS.iter();
    let of_kernel = sets.find(|(of, _)| std::ptr::eq(*of, kernel));
    &of_kernel.expect(kernel.name).1
}

fn sampled(kernel: &'static Kernel) -> Sets {
    let mut found = BTreeSet::new();
    let seeds = if common::thorough() { 8 } else { 4 };
    for (i, &size) in (0..).zip(SIZES) {
        for seed in 8 * i..8 * i + seeds {
            let sample = (kernel.sample)(size, &mut Rng::new(seed)).expect(kernel.name);
            let steps = sample.plan.steps().iter();
            let own = steps.filter(|s| std::ptr::eq(s.kernel, kernel));
            found.extend(own.map(|s| s.constants.clone()));
        }
    }
    found
}

/// Some of the sets, spread over all, for texts that are long: a dozen for those made for a hidden size,
/// whose options are those of the kernel of a single step, which is taken with every set; two dozen for
/// products; a third of that, and two dozen of any, where not everything runs.
fn few(sets: Sets) -> Sets {
    let all_have = |names: &[&str]| {
        let has = |set: &Vec<Constant>| set.iter().any(|(name, _)| names.contains(name));
        sets.iter().all(has)
    };
    let most = match () {
        () if all_have(&["HIDDEN", "SEQUENCES"]) => 12,
        () if all_have(&["C_VEC4"]) => 24,
        () if common::thorough() => return sets,
        () => 3 * 24,
    };
    let most = if common::thorough() { most } else { most / 3 };
    // Odd, so that options of two values are not seen with one alone.
    let every = sets.len().div_ceil(most) | 1;
    sets.into_iter().step_by(every).collect()
}

/// Samples of steps run on every device, and so without subgroup operations; here the kernels that have a use
/// for them are taken with them as well.
fn with_subgroups(mut sets: Sets) -> Sets {
    for mut set in sets.clone() {
        if let Some(flag) = set.iter_mut().find(|(name, _)| *name == SUBGROUPS) {
            flag.1 = 1;
            sets.insert(set);
        }
    }
    sets
}

/// For what every WebGPU device has, and for subgroup operations and 16-bit floats where the text asks for them.
fn validator(text: &str) -> Validator {
    let mut portable = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    portable.set(
        Capabilities::SHADER_FLOAT16,
        text.starts_with("enable f16;"),
    );
    portable.set(
        Capabilities::COOPERATIVE_MATRIX,
        text.contains("\nenable wgpu_cooperative_matrix;\n"),
    );
    if !uses_subgroups(text) {
        return Validator::new(ValidationFlags::all(), portable);
    }
    let capabilities = portable | Capabilities::SUBGROUP;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all());
    validator
}

fn uses_subgroups(text: &str) -> bool {
    text.contains("@builtin(subgroup_")
}

const SUBGROUPS: &str = "SUBGROUPS";

/// A composed shader, parsed and valid.
struct Shader {
    kernel: &'static Kernel,
    constants: Vec<Constant>,
    text: String,
    module: Module,
    info: ModuleInfo,
}

/// One for each set of constants of each kernel, made once for all tests.
static SHADERS: LazyLock<Vec<Shader>> = LazyLock::new(|| {
    let of_each = |kernels: Vec<&'static Kernel>| kernels.into_iter().flat_map(shaders).collect();
    let all: Vec<Vec<Shader>> = common::spread(ALL, of_each);
    all.into_iter().flatten().collect()
});

fn shaders(kernel: &'static Kernel) -> Vec<Shader> {
    let mut shaders = Vec::new();
    for constants in with_subgroups(constants(kernel)) {
        let text = compose(kernel.name, kernel.wgsl, &constants).expect(kernel.name);
        let module = naga::front::wgsl::parse_str(&text)
            .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)));
        let info = validator(&text)
            .validate(&module)
            .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)));
        shaders.push(Shader {
            kernel,
            constants,
            text,
            module,
            info,
        });
    }
    shaders
}

impl Shader {
    fn name(&self) -> &'static str {
        self.kernel.name
    }

    /// The entry point and which globals it uses.
    fn entry(&self) -> (&naga::EntryPoint, &FunctionInfo) {
        let points = &self.module.entry_points;
        let at = points.iter().position(|p| p.name == self.kernel.entry);
        let at =
            at.unwrap_or_else(|| panic!("{}: no entry point {}", self.name(), self.kernel.entry));
        (&points[at], self.info.get_entry_point(at))
    }

    fn globals(&self) -> Vec<&naga::GlobalVariable> {
        let (_, used) = self.entry();
        let globals = self.module.global_variables.iter();
        globals
            .filter(|(handle, _)| !used[*handle].is_empty())
            .map(|(_, global)| global)
            .collect()
    }

    fn size(&self, global: &naga::GlobalVariable) -> u32 {
        self.module.types[global.ty]
            .inner
            .size(self.module.to_ctx())
    }
}

#[test]
fn they_translate_for_every_api() {
    for shader in SHADERS.iter() {
        let name = shader.name();
        let Shader { module, info, .. } = shader;
        let entry = shader.kernel.entry.to_owned();
        let point = (ShaderStage::Compute, entry.clone());

        let options = back::spv::PipelineOptions {
            shader_stage: ShaderStage::Compute,
            entry_point: entry.clone(),
        };
        let words =
            back::spv::write_vec(module, info, &back::spv::Options::default(), Some(&options));
        assert!(!words.expect(name).is_empty(), "{name}");

        let options = back::msl::PipelineOptions {
            entry_point: Some(point.clone()),
            ..Default::default()
        };
        let mut language = back::msl::Options::default();
        if shader.kernel.uses_cooperative_matrices() {
            language.lang_version = (2, 3);
        }
        let metal = back::msl::write_string(module, info, &language, &options);
        match metal {
            Ok((text, _)) => assert!(text.contains("kernel void"), "{name}"),
            // Metal has cooperative matrices of 8 x 8 alone.
            Err(e) => assert!(shader.constants.contains(&("LARGE", 1)), "{name}: {e}"),
        }

        // DirectX 12 has none of these.
        if shader.kernel.uses_cooperative_matrices() {
            continue;
        }
        let options = back::hlsl::PipelineOptions {
            entry_point: Some(point),
        };
        let mut text = String::new();
        back::hlsl::Writer::new(&mut text, &back::hlsl::Options::default(), &options)
            .write(module, info, None)
            .expect(name);
        assert!(text.contains("numthreads"), "{name}");
    }
}

#[test]
fn bindings_are_those_of_the_descriptor() {
    for shader in SHADERS.iter() {
        let (kernel, name) = (shader.kernel, shader.name());
        let mut left: BTreeMap<u32, _> = kernel
            .bindings
            .iter()
            .enumerate()
            .map(|(i, b)| (i as u32 + 1, b))
            .collect();
        let mut uniform = None;
        for global in shader.globals() {
            let Some(place) = global.binding else {
                let own = matches!(
                    global.space,
                    AddressSpace::WorkGroup | AddressSpace::Private
                );
                assert!(own, "{name}: {:?}", global.name);
                continue;
            };
            let variable = global.name.as_deref().unwrap_or_default();
            assert_eq!(place.group, 0, "{name}: {variable}");
            if place.binding == 0 {
                assert_eq!(global.space, AddressSpace::Uniform, "{name}: {variable}");
                uniform = Some(shader.size(global) as usize);
                continue;
            }
            let binding = left.remove(&place.binding);
            let binding =
                binding.unwrap_or_else(|| panic!("{name}: {variable} is bound and not described"));
            assert_eq!(variable, binding.name, "{name}: binding {}", place.binding);
            let access = match binding.access {
                Access::Read => StorageAccess::LOAD,
                Access::ReadWrite | Access::Write => StorageAccess::LOAD | StorageAccess::STORE,
            };
            assert_eq!(
                global.space,
                AddressSpace::Storage { access },
                "{name}: {variable}"
            );
            let TypeInner::Array { base, .. } = shader.module.types[global.ty].inner else {
                panic!("{name}: {variable} is no array");
            };
            let scalar = shader.module.types[base].inner.scalar();
            let set = |name| shader.constants.contains(&(name, 1));
            let half = binding.half.is_some_and(set);
            let expected = match (binding.element, half) {
                (Element::Float, false) => (ScalarKind::Float, 4),
                (Element::Float, true) if binding.f16 => (ScalarKind::Float, 2),
                // Two 16-bit floats to a word.
                _ => (ScalarKind::Uint, 4),
            };
            assert_eq!(
                scalar.map(|s| (s.kind, s.width)),
                Some(expected),
                "{name}: {variable}"
            );
        }
        assert!(left.is_empty(), "{name} does not use {left:?}");
        assert_eq!(uniform, Some(kernel.params_size), "{name}: parameters");
    }
}

#[test]
fn workgroups_are_those_of_the_descriptor() {
    for shader in SHADERS.iter() {
        let (kernel, name) = (shader.kernel, shader.name());
        let size: u32 = shader.entry().0.workgroup_size.iter().product();
        assert_eq!(
            size,
            kernel.threads(&shader.constants),
            "{name}: workgroup size"
        );
        let shared = shader
            .globals()
            .into_iter()
            .filter(|g| g.space == AddressSpace::WorkGroup);
        let memory: u32 = shared.map(|g| shader.size(g)).sum();
        assert_eq!(
            memory,
            kernel.shared_bytes(&shader.constants),
            "{name}: workgroup memory"
        );
    }
}

#[test]
fn names_and_labels() {
    let names: BTreeSet<_> = ALL.iter().map(|k| k.name).collect();
    assert_eq!(names.len(), ALL.len(), "two kernels have one name");
    for kernel in ALL {
        // With a number behind it where one text serves several sizes.
        let last = kernel.name.rsplit('.').next().unwrap_or_default();
        let last = last.trim_end_matches(|c: char| c.is_ascii_digit());
        assert_eq!(last, kernel.entry, "{}: its entry point", kernel.name);
    }
}

/// The samples reach every variant of the products: bias or none, four activations, each matrix bound in
/// every way.
#[test]
fn samples_cover_the_constants() {
    for kernel in ALL.iter().filter(|k| k.name.starts_with("gemm")) {
        let sets = all_constants(kernel);
        let values = |name: &str| -> Vec<u32> {
            let all = sets.iter().flatten().filter(|(n, _)| *n == name);
            let distinct: BTreeSet<u32> = all.map(|(_, v)| *v).collect();
            distinct.into_iter().collect()
        };
        let name = kernel.name;
        let (a, b, c): (&[u32], &[u32], &[u32]) = match kernel.entry {
            "gemm" => (&[], &[], &[]),
            "along_k" => (&[0, 1], &[0, 1], &[0, 1]),
            "across_k" => (&[0], &[0, 2], &[0, 1]),
            "sum" => (&[0, 1], &[], &[0, 1]),
            "blocks" => (&[0, 1, 2], &[0, 1, 2], &[0]),
            "cooperative" => (&[], &[], &[0, 1]),
            _ => (&[0, 1, 2], &[0, 1, 2], &[0, 1]),
        };
        assert_eq!(values("A_VEC4"), a, "{name}");
        assert_eq!(values("B_VEC4"), b, "{name}");
        assert_eq!(values("C_VEC4"), c, "{name}");
        let halves: &[u32] = if kernel.entry == "sum" { &[] } else { &[0, 1] };
        assert_eq!(values("B_HALF"), halves, "{name}");
        assert_eq!(values("ACTIVATION"), [0, 1, 2, 3], "{name}");
        if kernel.entry == "cooperative" {
            assert_eq!(values("LARGE"), [0, 1], "{name}");
        }
        let by_rows = ["along_k", "across_k"].contains(&kernel.entry);
        let biases: &[u32] = if by_rows { &[0, 1, 2] } else { &[0, 1] };
        assert_eq!(values("BIAS"), biases, "{name}");
        if by_rows {
            assert_eq!(values("FEW"), [1, 2, 3, 4, 5, 6, 7, 8], "{name}");
        }
    }
}

/// And every shape of the forms of a step.
#[test]
fn samples_cover_the_forms() {
    for kernel in ALL {
        let known: &[(&str, &[u32])] = match kernel.name.rsplit('_').next() {
            Some("blocks") => &[("SEQUENCES", &[1, 2, 4, 8])],
            Some("few") => &[("SEQUENCES", &[1, 2, 4, 8]), ("THREADS", &[32, 64])],
            Some("tile") => &[("SEQUENCES", &[4, 8]), ("TILE_QUADS", &[2, 4, 8])],
            // A quad of one gate is of four units, so that no invocation has its own alone.
            _ if kernel.name.starts_with("rnn.sequence_") => &[("TILE", &[1, 2, 3, 4])],
            _ if kernel.name.contains(".sequence_") => &[
                ("ALONE", &[0, 1]),
                ("RING", &[0, 4]),
                ("TILE", &[1, 2, 3, 4]),
            ],
            _ => continue,
        };
        let name = kernel.name;
        let sets = all_constants(kernel);
        for (constant, wanted) in known {
            let all = sets.iter().flatten().filter(|(n, _)| n == constant);
            let met: BTreeSet<u32> = all.map(|(_, v)| *v).collect();
            assert!(
                met.is_superset(&wanted.iter().copied().collect()),
                "{name} {constant} {met:?}"
            );
        }
        let three = sets.iter().flatten().any(|c| *c == ("THREE", 1));
        assert_eq!(three, name == "gru.forward_tile", "{name}");
        if name.starts_with("lstm.sequence_") {
            for peephole in [("PEEPHOLE", 0), ("PEEPHOLE", 1)] {
                let both = |set: &Vec<_>| set.contains(&("RING", 4)) && set.contains(&peephole);
                assert!(sets.iter().any(both), "{name} {peephole:?}");
            }
        }
        if name.contains(".forward") && !name.ends_with("tile") {
            assert!(sets.iter().flatten().any(|c| *c == ("STREAM", 1)), "{name}");
        }
    }
}

/// And both precisions of packed weights and of activations.
#[test]
fn samples_cover_the_precisions() {
    let mut found = 0;
    for kernel in ALL {
        let sets = all_constants(kernel);
        for name in kernel.bindings.iter().filter_map(|b| b.half) {
            for value in [0, 1] {
                let met = sets.iter().flatten().any(|c| *c == (name, value));
                assert!(met, "{} with {name} {value}", kernel.name);
            }
            found += 1;
        }
    }
    // Packing, nine kernels of products, and of three cells three forms and all steps, both ways; what ten
    // kernels of products store, the second factor of a sum, rows that are cleared, and the gates of these cells, plain steps
    // too.
    let weights = 1 + 9 + 3 * 4 * 2;
    assert_eq!(found, weights + 10 + 1 + 1 + 3 * 5 * 2);
}

/// What Chrome compiles WGSL with, where it is installed.
#[test]
fn tint_accepts_them() {
    if let Err(e) = Command::new("tint").arg("--help").output() {
        println!("tint_accepts_them: tint does not start ({e}), so no shader was checked with it");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Browsers have no cooperative matrices.
    let common = |s: &&Shader| !s.kernel.uses_cooperative_matrices();
    for (i, shader) in SHADERS.iter().filter(common).enumerate() {
        let path = folder.path().join(format!("{i}.wgsl"));
        let enable = match uses_subgroups(&shader.text) {
            true => "enable subgroups;\n",
            false => "",
        };
        std::fs::write(&path, enable.to_owned() + &shader.text).unwrap();
        let out = Command::new("tint")
            .args(["--format", "wgsl"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}: {}",
            shader.name(),
            String::from_utf8_lossy(&out.stderr)
        );
    }
}
