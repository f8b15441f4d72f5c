// Gradients of rows from those of their projections and norms: docs/algorithm.md, section 7.
//
//     dx_l = factor * sum_m du_m w_ml + dh g_l x_l
//
// Directions and factors of squares carry the scale of the inputs; `factor` takes log2(e) out again where directions
// carry it. An invocation makes 4 rows times 4 axes. BH: batch entries times heads, those of one group.

// du [BH, rows, P]
@group(0) @binding(1) var<storage, read> projections: array<f32>;
// dh [BH, rows]
@group(0) @binding(2) var<storage, read> norms: array<f32>;
// x [BH, rows, D]
@group(0) @binding(3) var<storage, read> inputs: array<f32>;
// per set: directions [P, D], constants [P], factors of squares [D]
@group(0) @binding(4) var<storage, read> parameters: array<f32>;
// [BH]
@group(0) @binding(5) var<storage, read> sets: array<u32>;
// [BH, rows, D]
@group(0) @binding(6) var<storage, read_write> gradients: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= sizes.invocations {
        return;
    }
    let d = sizes.head_dim;
    let columns = (d + 3u) / 4u;
    let row_tiles = (sizes.rows + 3u) / 4u;
    let first_axis = at % columns * 4u;
    let first_row = at / columns % row_tiles * 4u;
    let batch_head = at / columns / row_tiles;
    let rows = vec4u(batch_head * sizes.rows) + min(vec4u(first_row) + vec4u(0u, 1u, 2u, 3u), vec4u(sizes.rows - 1u));
    let axes = min(vec4u(first_axis) + vec4u(0u, 1u, 2u, 3u), vec4u(d - 1u));
    let start = sets[batch_head] * (sizes.projections * (d + 1u) + d);
    let du = rows * sizes.projections;
    var sums = mat4x4f();
    for (var m = 0u; m < sizes.projections; m++) {
        let w = vec4u(start + m * d) + axes;
        sums += outer(
            vec4f(projections[du.x + m], projections[du.y + m], projections[du.z + m], projections[du.w + m]),
            vec4f(parameters[w.x], parameters[w.y], parameters[w.z], parameters[w.w]),
        );
    }
    let squares = start + sizes.projections * (d + 1u);
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            if first_row + i < sizes.rows && first_axis + j < d {
                let row = batch_head * sizes.rows + first_row + i;
                let x = clamp(inputs[row * d + first_axis + j], -sizes.input_limit, sizes.input_limit);
                let of_norm = norms[row] * parameters[squares + first_axis + j] * x;
                gradients[row * d + first_axis + j] = sizes.factor * sums[i][j] + of_norm;
            }
        }
    }
}
