// Gradients of h, half the squared norm of a key: docs/algorithm.md, section 7.
//
//     dh = factor * sum_m mantissa_m dphi_m      factor -1 exponential, 1 trigonometric, 0 where no norm counts
//
// An invocation makes one row. BH: batch entries times heads, those of one group.

// [BH, rows, F]
@group(0) @binding(1) var<storage, read> features: array<Feature>;
// [BH, rows, F]
@group(0) @binding(2) var<storage, read> gradients: array<f32>;
// [BH, rows]
@group(0) @binding(3) var<storage, read_write> norms: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let row = invocation(group, local);
    if row >= sizes.invocations {
        return;
    }
    var sum = 0.0;
    for (var m = 0u; m < select(sizes.features, 0u, sizes.factor == 0.0); m++) {
        let at = row * sizes.features + m;
        sum += features[at].mantissa * gradients[at];
    }
    norms[row] = sizes.factor * sum;
}
