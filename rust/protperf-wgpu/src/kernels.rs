//! The shaders: their sources, what they bind, and their compiled forms.

use bytemuck::{Pod, Zeroable};
use std::sync::OnceLock;
use wgpu::{
    BindGroupLayout, BindGroupLayoutDescriptor, BindGroupLayoutEntry, BindingType, BufferBindingType, ComputePipeline,
    ComputePipelineDescriptor, Device, PipelineCompilationOptions, PipelineLayoutDescriptor, ShaderModuleDescriptor,
    ShaderSource, ShaderStages,
};

/// Sizes and options of one dispatch: the twin of `Sizes` in `shaders/prelude.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Sizes {
    /// Invocations that have something to do.
    pub invocations: u32,
    /// Batch entries times query heads.
    pub batch_heads: u32,
    /// Rows of each batch head on the side that is worked on.
    pub rows: u32,
    /// D.
    pub head_dim: u32,
    /// P.
    pub projections: u32,
    /// F.
    pub features: u32,
    /// E + 1: a one and the values, or their gradients.
    pub width: u32,
    /// Tiles of each batch head.
    pub tiles: u32,
    /// The most rows that a tile has.
    pub tile_rows: u32,
    /// States of each batch head.
    pub states: u32,
    /// The family of the map, or the function of an activation map, as `prelude.wgsl` and `project.wgsl` number them.
    pub family: u32,
    /// Which variant of the stage, as its shader says.
    pub mode: u32,
    /// Added to every feature of an activation map.
    pub epsilon: f32,
    /// The largest magnitude of an input.
    pub input_limit: f32,
    /// What half a squared norm is multiplied with, or what gradients of inputs are.
    pub factor: f32,
    /// 1 where something may be left out, as the shader says.
    pub flag: u32,
    /// 1 where values are over powers of two.
    pub powers: u32,
    pub padding: [u32; 3],
}

const _: () = assert!(size_of::<Sizes>() == 80);

/// Sizes of one dispatch, as some shaders take them.
pub trait Uniform: Pod {
    /// Invocations that have something to do.
    fn invocations(&self) -> u32;
}

impl Uniform for Sizes {
    fn invocations(&self) -> u32 {
        self.invocations
    }
}

macro_rules! kernels {
    ($($(#[$doc:meta])* $kernel:ident = $file:literal after $($prelude:literal)+, reads $reads:literal, writes $writes:literal;)*) => {
        /// A shader. Its bindings are the sizes, then what it reads, then what it writes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kernel {
            $($(#[$doc])* $kernel,)*
        }

        impl Kernel {
            #[cfg(test)]
            pub const ALL: &[Kernel] = &[$(Kernel::$kernel),*];
            const COUNT: usize = [$(Kernel::$kernel),*].len();

            fn recipe(self) -> Recipe {
                match self {
                    $(Kernel::$kernel => Recipe {
                        name: $file,
                        source: concat!(
                            include_str!("shaders/numbers.wgsl"),
                            $(include_str!(concat!("shaders/", $prelude, ".wgsl")),)+
                            include_str!(concat!("shaders/", $file, ".wgsl")),
                        ),
                        reads: $reads,
                        writes: $writes,
                    },)*
                }
            }
        }
    };
}

kernels! {
    /// Rows to features; those with numbers take 16 or 32 KB of workgroup memory.
    Project16 = "project" after "prelude" "depth_16", reads 4, writes 1;
    Project32 = "project" after "prelude" "depth_32", reads 4, writes 1;
    /// The state that the keys of one tile make.
    Summarize16 = "summarize" after "prelude" "powers" "depth_16", reads 4, writes 1;
    Summarize32 = "summarize" after "prelude" "powers" "depth_32", reads 4, writes 1;
    /// The states before each tile, and after the last.
    Scan = "scan" after "prelude" "powers", reads 5, writes 2;
    /// Products of the features of queries and keys of one tile.
    Scores = "scores" after "prelude", reads 3, writes 1;
    /// What rows read from a state and from their own tile.
    Read16 = "read" after "prelude" "powers" "depth_16", reads 6, writes 2;
    Read32 = "read" after "prelude" "powers" "depth_32", reads 6, writes 2;
    /// Gradients of the scores of one tile.
    ScoreGradient = "score_gradient" after "prelude", reads 3, writes 1;
    /// Gradients of features.
    FeatureGradient = "feature_gradient" after "prelude", reads 6, writes 1;
    /// Gradients of projections.
    PullBack = "pull_back" after "prelude", reads 3, writes 1;
    /// Gradients of the squared norms of keys.
    NormGradient = "norm_gradient" after "prelude", reads 2, writes 1;
    /// Gradients of the rows.
    InputGradient = "input_gradient" after "prelude", reads 5, writes 1;
    /// Gradients of directions and constants, one part per block of rows.
    ParameterGradient = "parameter_gradient" after "prelude" "powers", reads 3, writes 1;
    /// Tokens to the residual stream.
    Embed = "network/embed" after "network/prelude", reads 3, writes 1;
    /// Rows over their root mean square, times a gain.
    Norm = "network/norm" after "network/prelude", reads 2, writes 1;
    /// Products of rows with the rows of a matrix.
    Linear16 = "network/linear" after "network/prelude" "depth_16", reads 2, writes 1;
    Linear32 = "network/linear" after "network/prelude" "depth_32", reads 2, writes 1;
    /// Rows of queries, keys and values to rows of batch heads.
    Heads = "network/heads" after "network/prelude", reads 3, writes 3;
    /// What heads read, side by side in rows.
    Merge = "network/merge" after "network/prelude", reads 1, writes 1;
    /// A gate times what it lets through.
    Gate = "network/gate" after "network/prelude", reads 1, writes 1;
    /// Some rows of two arrays.
    Gather = "network/gather" after "network/prelude", reads 3, writes 1;
    /// Logits to log-probabilities.
    LogSoftmax = "network/log_softmax" after "network/prelude", reads 0, writes 1;
    /// Logits of exact attention.
    ExactScores = "network/exact_scores" after "network/prelude", reads 3, writes 1;
    /// Logits of exact attention to weights.
    ExactWeights = "network/exact_weights" after "network/prelude", reads 1, writes 1;
    /// Means of values, weighted.
    ExactRead = "network/exact_read" after "network/prelude", reads 3, writes 1;
    /// Logits of the weights of rows that are pooled.
    PoolLogits = "network/pool_logits" after "network/prelude" "network/pool_prelude", reads 2, writes 1;
    /// Sums of blocks of rows that are pooled.
    PoolBlocks = "network/pool_blocks" after "network/prelude" "network/pool_prelude", reads 3, writes 2;
    /// Sums of blocks to vectors.
    Pool = "network/pool" after "network/prelude" "network/pool_prelude", reads 3, writes 1;
    /// A tensor of queries to rows of batch heads.
    TensorQueries = "tensor/queries" after "tensor/prelude", reads 1, writes 2;
    /// A tensor of keys to rows of batch heads, and what is known of them.
    TensorKeys = "tensor/keys" after "tensor/prelude" "tensor/packed", reads 4, writes 4;
    /// The powers of two that values are divided by.
    TensorPowers = "tensor/powers" after "tensor/prelude", reads 3, writes 3;
    /// A tensor of values to rows of batch heads.
    TensorValues = "tensor/values" after "tensor/prelude", reads 3, writes 1;
    /// What is known of states before the first keys.
    StateFacts = "tensor/state_facts" after "tensor/prelude", reads 1, writes 1;
    /// A tensor of states to states of batch heads.
    FirstStates = "tensor/first_states" after "tensor/prelude", reads 4, writes 1;
    /// What queries read to a tensor.
    TensorOutputs = "tensor/outputs" after "tensor/prelude" "tensor/packed", reads 5, writes 1;
    /// States of batch heads to a tensor.
    LastStates = "tensor/last_states" after "tensor/prelude", reads 2, writes 1;
    /// The states of the keys of two.
    MergeStates = "tensor/merge_states" after "tensor/prelude", reads 2, writes 1;
    /// Normals of a projection.
    Normals = "draw/normals" after "draw/prelude", reads 0, writes 1;
    /// One reflection of a QR decomposition.
    Reflect = "draw/reflect" after "draw/prelude", reads 0, writes 1;
    /// One reflection of the rows of its rotation.
    Rotate = "draw/rotate" after "draw/prelude", reads 1, writes 1;
    /// Norms of the rows of a projection.
    Scale = "draw/scale" after "draw/prelude", reads 0, writes 1;
}

struct Recipe {
    name: &'static str,
    source: &'static str,
    reads: u32,
    writes: u32,
}

/// A compiled shader.
pub struct Compiled {
    pub pipeline: ComputePipeline,
    pub layout: BindGroupLayout,
}

/// Shaders, each compiled when it is first used.
pub struct Kernels([OnceLock<Compiled>; Kernel::COUNT]);

impl Default for Kernels {
    fn default() -> Self {
        Kernels([const { OnceLock::new() }; Kernel::COUNT])
    }
}

impl Kernels {
    /// A compiled shader. That it does not compile, the device reports.
    pub fn get(&self, device: &Device, kernel: Kernel) -> &Compiled {
        self.0[kernel as usize].get_or_init(|| kernel.recipe().compile(device))
    }
}

impl Recipe {
    fn compile(&self, device: &Device) -> Compiled {
        let label = Some(self.name);
        // An explicit layout: a derived one would drop a binding that an optimiser finds unused.
        let entries: Vec<_> = (0..=self.reads + self.writes).map(|binding| self.entry(binding)).collect();
        let layout = device.create_bind_group_layout(&BindGroupLayoutDescriptor { label, entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let source = ShaderSource::Wgsl(self.source.into());
        let module = device.create_shader_module(ShaderModuleDescriptor { label, source });
        let pipeline = device.create_compute_pipeline(&ComputePipelineDescriptor {
            label,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            // What is shared is written before it is read.
            compilation_options: PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        Compiled { pipeline, layout }
    }

    fn entry(&self, binding: u32) -> BindGroupLayoutEntry {
        let ty = match binding {
            0 => BufferBindingType::Uniform,
            _ => BufferBindingType::Storage { read_only: binding <= self.reads },
        };
        BindGroupLayoutEntry {
            binding,
            visibility: ShaderStages::COMPUTE,
            ty: BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{ALONE, no_gpu_to_test, with_gpu};
    use crate::error::GpuError;

    /// Without a device, so that it runs everywhere.
    #[test]
    fn every_shader_is_valid() {
        use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};
        for kernel in Kernel::ALL {
            let recipe = kernel.recipe();
            let module = wgpu::naga::front::wgsl::parse_str(recipe.source);
            let module =
                module.unwrap_or_else(|error| panic!("{}", error.emit_to_string_with_path(recipe.source, recipe.name)));
            let valid = Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module);
            assert!(valid.is_ok(), "{}: {:?}", recipe.name, valid.err());
        }
    }

    #[test]
    fn a_shader_that_does_not_compile_is_an_error_and_the_device_is_opened_anew() {
        if no_gpu_to_test() {
            return;
        }
        let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let opening = || with_gpu(|gpu| Ok::<_, GpuError>(gpu.opening())).unwrap();
        let before = opening();
        let broken = Recipe { name: "broken", source: "@compute fn main() { let x: f32 = 1u; }", reads: 0, writes: 1 };
        let found = with_gpu(|gpu| {
            broken.compile(&gpu.device);
            Ok::<_, GpuError>(())
        });
        let Err(GpuError::Refused { detail }) = found else { panic!("{found:?}") };
        assert!(detail.contains("broken"), "{detail}");
        assert!(opening() > before);
    }

    /// wgpu does not check it.
    #[test]
    fn every_shader_takes_no_more_workgroup_memory_than_its_name_says() {
        use wgpu::naga::AddressSpace;
        for &kernel in Kernel::ALL {
            let module = wgpu::naga::front::wgsl::parse_str(kernel.recipe().source).unwrap();
            let shared = module.global_variables.iter().filter(|(_, of)| of.space == AddressSpace::WorkGroup);
            let bytes: u32 = shared.map(|(_, of)| module.types[of.ty].inner.size(module.to_ctx())).sum();
            let name = format!("{kernel:?}");
            let most = if name.ends_with("16") {
                16 << 10
            } else if name.ends_with("32") {
                32 << 10
            } else {
                0
            };
            assert!(bytes <= most && bytes >= most / 2, "{name} {bytes}");
        }
    }

    #[test]
    fn every_shader_binds_no_more_than_every_adapter_has() {
        for kernel in Kernel::ALL {
            let recipe = kernel.recipe();
            assert!(recipe.reads + recipe.writes <= wgpu::Limits::default().max_storage_buffers_per_shader_stage);
        }
    }
}
