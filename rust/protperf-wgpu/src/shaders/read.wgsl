// What rows read from a state and from the rows of their own tile: docs/algorithm.md, section 1.
//
//     t_i = max(max_m exponent_im + n_m, max_j exponent of s_ij)
//     [D_i, N_i] = sum_m phi_im 2^(n_m - t_i) S_m + sum_j s_ij 2^(-t_i) [1, v_j]
//
// Mode 0, forward: rows are queries, j <= i; out is N / D, or 0 where D is 0, and den is D as exponent and mantissa.
// Mode 1, backward: rows are keys that read the state of later queries, j >= i; t is 0 and out is N, den is not written.
// With flag 0 there is the state alone. Values and sums of them may be over powers of two; N is over that of the row then,
// which no later row has a part in. An invocation makes 4 rows times 4 columns of [D, N].
// BH: batch entries times heads, those of one group.

// [BH, rows, F]
@group(0) @binding(1) var<storage, read> features: array<Feature>;
// [BH, states, F, 1 + width]
@group(0) @binding(2) var<storage, read> states: array<f32>;
// [tiles]
@group(0) @binding(3) var<storage, read> tiles: array<Tile>;
// by query and key [BH, tiles, tile_rows, tile_rows]
@group(0) @binding(4) var<storage, read> scores: array<Feature>;
// [1, v] of the other side [BH, rows, width]
@group(0) @binding(5) var<storage, read> values: array<f32>;
// of values [BH, rows]; with powers 0 there are none
@group(0) @binding(6) var<storage, read> powers: array<i32>;
// [BH, rows, width]: column 0 is not filled in mode 0
@group(0) @binding(7) var<storage, read_write> out: array<f32>;
// [BH, rows, 2]
@group(0) @binding(8) var<storage, read_write> den: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= sizes.invocations {
        return;
    }
    let columns = (sizes.width + 3u) / 4u;
    let blocks = (sizes.tile_rows + 3u) / 4u;
    let first_column = at % columns * 4u;
    let own_row = at / columns % blocks * 4u;
    let of_tile = at / columns / blocks;
    let tile = tiles[of_tile % sizes.tiles];
    if own_row >= tile.count {
        return;
    }
    let batch_head = of_tile / sizes.tiles;
    let first_row = batch_head * sizes.rows + tile.first;
    let row = min(vec4u(own_row) + vec4u(0u, 1u, 2u, 3u), vec4u(tile.count - 1u));
    let base = (vec4u(first_row) + row) * sizes.features;
    let state = (batch_head * sizes.states + tile.state) * sizes.features * (sizes.width + 1u);
    let c = min(vec4u(first_column) + vec4u(0u, 1u, 2u, 3u), vec4u(sizes.width - 1u));
    var top = vec4i(0);
    if sizes.mode == 0u {
        top = tops(base, state, of_tile, row);
    }
    var sums = mat4x4f();
    var ones = vec4f();
    for (var m = 0u; m < sizes.features; m++) {
        let x = features[base.x + m];
        let y = features[base.y + m];
        let z = features[base.z + m];
        let w = features[base.w + m];
        let s = state + m * (sizes.width + 1u);
        let exponents = vec4i(x.exponent, y.exponent, z.exponent, w.exponent) + vec4i(reference_of(states[s]));
        let read = vec4f(x.mantissa, y.mantissa, z.mantissa, w.mantissa) * exp2_int4(exponents - top);
        sums += outer(read, vec4f(states[s + 1u + c.x], states[s + 1u + c.y], states[s + 1u + c.z], states[s + 1u + c.w]));
        ones += read * states[s + 1u];
    }
    var power = vec4i(0);
    var state_power = 0;
    if sizes.flag == 1u {
        let r = vec4u(first_row) + row;
        power = vec4i(power_at(r.x), power_at(r.y), power_at(r.z), power_at(r.w));
        state_power = power_at(first_row);
    }
    let of_state = exp2_int4(vec4i(state_power) - power);
    sums = mat4x4f(sums[0] * of_state.x, sums[1] * of_state.y, sums[2] * of_state.z, sums[3] * of_state.w);
    var own_sums = mat4x4f();
    var own_ones = vec4f();
    for (var j = 0u; j < select(0u, tile.count, sizes.flag == 1u); j++) {
        let read = vec4f(
            score(of_tile, row.x, j, top.x),
            score(of_tile, row.y, j, top.y),
            score(of_tile, row.z, j, top.z),
            score(of_tile, row.w, j, top.w),
        );
        let v = (first_row + j) * sizes.width;
        // A row that is not seen has read 0, and a power that may be larger.
        let of_value = exp2_int4(min(vec4i(power_at(first_row + j)) - power, vec4i(0)));
        own_sums += outer(read * of_value, vec4f(values[v + c.x], values[v + c.y], values[v + c.z], values[v + c.w]));
        own_ones += read * values[v];
    }
    sums += own_sums;
    ones += own_ones;
    for (var i = 0u; i < 4u; i++) {
        if own_row + i < tile.count {
            store(first_row + own_row + i, first_column, sums[i], ones[i], top[i]);
        }
    }
}

// The largest exponent of a term of each row.
fn tops(base: vec4u, state: u32, of_tile: u32, row: vec4u) -> vec4i {
    var top = vec4i(2 * EMPTY);
    for (var m = 0u; m < sizes.features; m++) {
        let exponents =
            vec4i(features[base.x + m].exponent, features[base.y + m].exponent, features[base.z + m].exponent, features[base.w + m].exponent);
        top = max(top, exponents + vec4i(reference_of(states[state + m * (sizes.width + 1u)])));
    }
    for (var j = 0u; j < select(0u, row.w + 1u, sizes.flag == 1u); j++) {
        top = vec4i(
            own_top(top.x, of_tile, row.x, j),
            own_top(top.y, of_tile, row.y, j),
            own_top(top.z, of_tile, row.z, j),
            own_top(top.w, of_tile, row.w, j),
        );
    }
    return top;
}

fn own_top(top: i32, of_tile: u32, query: u32, key: u32) -> i32 {
    if key > query {
        return top;
    }
    return max(top, scores[(of_tile * sizes.tile_rows + query) * sizes.tile_rows + key].exponent);
}

// The score of a row with row j of its tile, over 2^top; 0 where the query does not see the key.
fn score(of_tile: u32, row: u32, j: u32, top: i32) -> f32 {
    let query = select(row, j, sizes.mode == 1u);
    let key = select(j, row, sizes.mode == 1u);
    if key > query {
        return 0.0;
    }
    let found = scores[(of_tile * sizes.tile_rows + query) * sizes.tile_rows + key];
    return found.mantissa * exp2_int(found.exponent - top);
}

fn store(row: u32, first_column: u32, sums: vec4f, ones: f32, top: i32) {
    let is_seen = ones != 0.0;
    let by = select(1.0, ones, is_seen);
    for (var j = 0u; j < 4u; j++) {
        if first_column + j < sizes.width {
            out[row * sizes.width + first_column + j] = select(sums[j], select(0.0, sums[j] / by, is_seen), sizes.mode == 0u);
        }
    }
    if sizes.mode == 0u && first_column == 0u {
        let parts = split(by);
        den[row * 2u] = select(0.0, f32(parts.exponent + top), is_seen);
        den[row * 2u + 1u] = select(0.0, parts.mantissa, is_seen);
    }
}
