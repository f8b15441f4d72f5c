// The state that the rows of one tile make by themselves: docs/algorithm.md, section 5.
//
//     n_m = max_j exponent_jm,   S_m = sum_j 2^(exponent_jm - n_m) mantissa_jm [1, v_j]
//
// Sums of values are over the power of the tile's last row. An invocation makes 4 features times 4 columns.
// BH: batch entries times heads, those of one group.

// [BH, rows, F]
@group(0) @binding(1) var<storage, read> features: array<Feature>;
// [BH, rows, width]
@group(0) @binding(2) var<storage, read> values: array<f32>;
// [tiles]
@group(0) @binding(3) var<storage, read> tiles: array<Tile>;
// of values [BH, rows]; with powers 0 there are none
@group(0) @binding(4) var<storage, read> powers: array<i32>;
// [BH, tiles, F, 1 + width]
@group(0) @binding(5) var<storage, read_write> states: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= sizes.invocations {
        return;
    }
    let columns = (sizes.width + 3u) / 4u;
    let feature_tiles = (sizes.features + 3u) / 4u;
    let first_column = at % columns * 4u;
    let first_feature = at / columns % feature_tiles * 4u;
    let of_tile = at / columns / feature_tiles;
    let tile = tiles[of_tile % sizes.tiles];
    let first_row = of_tile / sizes.tiles * sizes.rows + tile.first;
    let m = min(vec4u(first_feature) + vec4u(0u, 1u, 2u, 3u), vec4u(sizes.features - 1u));
    let c = min(vec4u(first_column) + vec4u(0u, 1u, 2u, 3u), vec4u(sizes.width - 1u));
    var reference = vec4i(EMPTY);
    for (var j = 0u; j < tile.count; j++) {
        let base = vec4u((first_row + j) * sizes.features) + m;
        let exponents =
            vec4i(features[base.x].exponent, features[base.y].exponent, features[base.z].exponent, features[base.w].exponent);
        reference = max(reference, exponents);
    }
    let last_power = power_at(first_row + tile.count - 1u);
    var sums = mat4x4f();
    for (var j = 0u; j < tile.count; j++) {
        let base = vec4u((first_row + j) * sizes.features) + m;
        let x = features[base.x];
        let y = features[base.y];
        let z = features[base.z];
        let w = features[base.w];
        let powers = exp2_int4(vec4i(x.exponent, y.exponent, z.exponent, w.exponent) - reference);
        let v = vec4u((first_row + j) * sizes.width) + c;
        let by = select(vec4f(exp2_int(power_at(first_row + j) - last_power)), vec4f(1.0), c == vec4u(0u));
        sums += outer(
            vec4f(x.mantissa, y.mantissa, z.mantissa, w.mantissa) * powers,
            vec4f(values[v.x], values[v.y], values[v.z], values[v.w]) * by,
        );
    }
    for (var i = 0u; i < 4u; i++) {
        if first_feature + i >= sizes.features {
            return;
        }
        let to = (of_tile * sizes.features + first_feature + i) * (sizes.width + 1u);
        if first_column == 0u {
            states[to] = stored_reference(reference[i]);
        }
        for (var j = 0u; j < 4u; j++) {
            if first_column + j < sizes.width {
                states[to + 1u + first_column + j] = sums[i][j];
            }
        }
    }
}
