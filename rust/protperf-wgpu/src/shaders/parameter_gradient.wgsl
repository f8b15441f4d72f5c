// Gradients of directions and constants: docs/algorithm.md, section 7.
//
//     dw_ml = sum_i du_im x_il,    dc_m = sum_i du_im
//
// over the rows of one block; the caller adds the blocks in their order. Gradients du may be over powers of two. An invocation makes 4 projections times 4 of
// the D + 1 columns, the last of which is the constant's. BH: batch entries times heads, those of one group.

// du [BH, rows, P]
@group(0) @binding(1) var<storage, read> projections: array<f32>;
// x [BH, rows, D]
@group(0) @binding(2) var<storage, read> inputs: array<f32>;
// of du [BH, rows]; with powers 0 there are none
@group(0) @binding(3) var<storage, read> powers: array<i32>;
// [BH, blocks, P, D + 1]; a block has tile_rows rows, and a batch head has `tiles` blocks
@group(0) @binding(4) var<storage, read_write> gradients: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= sizes.invocations {
        return;
    }
    let d = sizes.head_dim;
    let columns = (d + 4u) / 4u;
    let rows_of_four = (sizes.projections + 3u) / 4u;
    let first_column = at % columns * 4u;
    let first_projection = at / columns % rows_of_four * 4u;
    let block = at / columns / rows_of_four;
    let batch_head = block / sizes.tiles;
    let low = block % sizes.tiles * sizes.tile_rows;
    let high = min(low + sizes.tile_rows, sizes.rows);
    let m = min(vec4u(first_projection) + vec4u(0u, 1u, 2u, 3u), vec4u(sizes.projections - 1u));
    let c = vec4u(first_column) + vec4u(0u, 1u, 2u, 3u);
    let axis = min(c, vec4u(d - 1u));
    let limit = vec4f(sizes.input_limit);
    var sums = mat4x4f();
    for (var i = low; i < high; i++) {
        let row = batch_head * sizes.rows + i;
        let u = vec4u(row * sizes.projections) + m;
        let x = vec4u(row * d) + axis;
        let inputs4 = clamp(vec4f(inputs[x.x], inputs[x.y], inputs[x.z], inputs[x.w]), -limit, limit);
        sums += outer(
            vec4f(projections[u.x], projections[u.y], projections[u.z], projections[u.w]) * exp2_int(power_at(row)),
            select(inputs4, vec4f(1.0), c == vec4u(d)),
        );
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            if first_projection + i < sizes.projections && c[j] <= d {
                gradients[(block * sizes.projections + first_projection + i) * (d + 1u) + c[j]] = sums[i][j];
            }
        }
    }
}
