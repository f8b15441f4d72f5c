// Gradients of projections from those of the mantissas of features: docs/algorithm.md, section 7.
//
//     exponential     du = mantissa dphi                      (of the natural logarithm)
//     activation      du = f'(u) 2^(-exponent) dphi           (the slopes are those that `project` makes in mode 1)
//     trigonometric   du = cos dphi_sin - sin dphi_cos
//
// An invocation makes one projection of one row. BH: batch entries times heads, those of one group.

// [BH, rows, F]
@group(0) @binding(1) var<storage, read> features: array<Feature>;
// [BH, rows, F]; of activation maps alone
@group(0) @binding(2) var<storage, read> slopes: array<Feature>;
// [BH, rows, F]
@group(0) @binding(3) var<storage, read> gradients: array<f32>;
// [BH, rows, P]
@group(0) @binding(4) var<storage, read_write> projections: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= sizes.invocations {
        return;
    }
    let base = at / sizes.projections * sizes.features + at % sizes.projections;
    switch sizes.family {
        case EXPONENTIAL: {
            projections[at] = features[base].mantissa * gradients[base];
        }
        case TRIGONOMETRIC: {
            let sine = base + sizes.projections;
            projections[at] = features[base].mantissa * gradients[sine] - features[sine].mantissa * gradients[base];
        }
        default: {
            projections[at] = slopes[base].mantissa * gradients[base];
        }
    }
}
