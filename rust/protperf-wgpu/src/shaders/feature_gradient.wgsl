// Gradients of the mantissas of features: docs/algorithm.md, section 7.
//
//     dphi_im = 2^(exponent_im + n_m) S_m . x_i + sum_j 2^(exponent_im + exponent_jm) mantissa_jm G_ij
//
// Mode 0: rows are queries, S the state of the keys before their tile, x their cotangents. Mode 1: rows are keys, S the
// state of the queries after their tile, x their [1, v]. The exponents of queries carry the denominators, so no term is
// larger than a gradient is. With flag 0 there is the state alone. An invocation makes 4 rows times 4 features.
// BH: batch entries times heads, those of one group.

// [BH, rows, F]
@group(0) @binding(1) var<storage, read> features: array<Feature>;
// [BH, rows, width]
@group(0) @binding(2) var<storage, read> values: array<f32>;
// [BH, states, F, 1 + width]
@group(0) @binding(3) var<storage, read> states: array<f32>;
// [tiles]
@group(0) @binding(4) var<storage, read> tiles: array<Tile>;
// features of the other side [BH, rows, F]
@group(0) @binding(5) var<storage, read> others: array<Feature>;
// by query and key [BH, tiles, tile_rows, tile_rows]
@group(0) @binding(6) var<storage, read> score_gradients: array<f32>;
// [BH, rows, F]
@group(0) @binding(7) var<storage, read_write> gradients: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= sizes.invocations {
        return;
    }
    let columns = (sizes.features + 3u) / 4u;
    let blocks = (sizes.tile_rows + 3u) / 4u;
    let first_feature = at % columns * 4u;
    let own_row = at / columns % blocks * 4u;
    let of_tile = at / columns / blocks;
    let tile = tiles[of_tile % sizes.tiles];
    if own_row >= tile.count {
        return;
    }
    let batch_head = of_tile / sizes.tiles;
    let first_row = batch_head * sizes.rows + tile.first;
    let row = min(vec4u(own_row) + vec4u(0u, 1u, 2u, 3u), vec4u(tile.count - 1u));
    let m = min(vec4u(first_feature) + vec4u(0u, 1u, 2u, 3u), vec4u(sizes.features - 1u));
    let x = (vec4u(first_row) + row) * sizes.width;
    let s = ((batch_head * sizes.states + tile.state) * sizes.features + m) * (sizes.width + 1u);
    let n = vec4i(reference_of(states[s.x]), reference_of(states[s.y]), reference_of(states[s.z]), reference_of(states[s.w]));
    var sums = mat4x4f();
    for (var c = 0u; c < sizes.width; c++) {
        sums += outer(
            vec4f(values[x.x + c], values[x.y + c], values[x.z + c], values[x.w + c]),
            vec4f(states[s.x + 1u + c], states[s.y + 1u + c], states[s.z + 1u + c], states[s.w + 1u + c]),
        );
    }
    let e0 = exponents(first_row + row.x, m);
    let e1 = exponents(first_row + row.y, m);
    let e2 = exponents(first_row + row.z, m);
    let e3 = exponents(first_row + row.w, m);
    sums = mat4x4f(
        sums[0] * exp2_int4(e0 + n),
        sums[1] * exp2_int4(e1 + n),
        sums[2] * exp2_int4(e2 + n),
        sums[3] * exp2_int4(e3 + n),
    );
    var own_sums = mat4x4f();
    for (var j = 0u; j < select(0u, tile.count, sizes.flag == 1u); j++) {
        let other = (first_row + j) * sizes.features;
        let mantissas =
            vec4f(others[other + m.x].mantissa, others[other + m.y].mantissa, others[other + m.z].mantissa, others[other + m.w].mantissa);
        let e = vec4i(others[other + m.x].exponent, others[other + m.y].exponent, others[other + m.z].exponent, others[other + m.w].exponent);
        own_sums += mat4x4f(
            score_gradient(of_tile, row.x, j) * mantissas * exp2_int4(e0 + e),
            score_gradient(of_tile, row.y, j) * mantissas * exp2_int4(e1 + e),
            score_gradient(of_tile, row.z, j) * mantissas * exp2_int4(e2 + e),
            score_gradient(of_tile, row.w, j) * mantissas * exp2_int4(e3 + e),
        );
    }
    sums += own_sums;
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            if own_row + i < tile.count && first_feature + j < sizes.features {
                gradients[(first_row + own_row + i) * sizes.features + first_feature + j] = sums[i][j];
            }
        }
    }
}

fn exponents(row: u32, m: vec4u) -> vec4i {
    let base = vec4u(row * sizes.features) + m;
    return vec4i(features[base.x].exponent, features[base.y].exponent, features[base.z].exponent, features[base.w].exponent);
}

fn score_gradient(of_tile: u32, row: u32, j: u32) -> f32 {
    let query = select(row, j, sizes.mode == 1u);
    let key = select(j, row, sizes.mode == 1u);
    return score_gradients[(of_tile * sizes.tile_rows + query) * sizes.tile_rows + key];
}
