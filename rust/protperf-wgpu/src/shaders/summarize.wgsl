// The state that the rows of one tile make by themselves: docs/algorithm.md, section 5.
//
//     n_m = max_j exponent_jm,   S_m = sum_j 2^(exponent_jm - n_m) mantissa_jm [1, v_j]
//
// Sums of values are over the power of the tile's last row. A workgroup makes 64 features times 32 columns of values, and the
// sums of those features; an invocation makes 8 features times 4 columns of it.
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

const FEATURES = 64u;
const FOURS = 16u;
const COLUMNS = 32u;
const TERMS = 4u * DEPTH;

// Of the features.
var<workgroup> references: array<i32, FEATURES>;
// Some rows, TERMS of them: features over their references [TERMS, FEATURES], values [TERMS, COLUMNS] and ones [TERMS].
var<workgroup> shared_features: array<vec4f, TERMS * FOURS>;
var<workgroup> shared_values: array<vec4f, TERMS * 8u>;
var<workgroup> shared_ones: array<f32, TERMS>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = workgroup_number(group);
    if at >= sizes.invocations / 64u {
        return;
    }
    let across = max((sizes.width + COLUMNS - 2u) / COLUMNS, 1u);
    let down = (sizes.features + FEATURES - 1u) / FEATURES;
    // Column 0 of a row of values is its one.
    let first_column = 1u + at % across * COLUMNS;
    let first_feature = at / across % down * FEATURES;
    let of_tile = at / across / down;
    let tile = tiles[of_tile % sizes.tiles];
    let first_row = of_tile / sizes.tiles * sizes.rows + tile.first;
    var reference = EMPTY;
    let m = min(first_feature + local, sizes.features - 1u);
    for (var j = 0u; j < tile.count; j++) {
        reference = max(reference, features[(first_row + j) * sizes.features + m].exponent);
    }
    references[local] = reference;
    workgroupBarrier();
    let feature = local / 8u;
    let column = local % 8u;
    var sums_0 = mat4x4f();
    var sums_1 = mat4x4f();
    var ones_0 = vec4f();
    var ones_1 = vec4f();
    for (var start = 0u; start < tile.count; start += TERMS) {
        let rows = min(TERMS, tile.count - start);
        load(first_row + start, rows, first_row + tile.count - 1u, first_feature, first_column, local);
        workgroupBarrier();
        for (var j = 0u; j < rows; j++) {
            let x0 = shared_features[j * FOURS + feature];
            let x1 = shared_features[j * FOURS + feature + 8u];
            let v = shared_values[j * 8u + column];
            sums_0 += outer(x0, v);
            sums_1 += outer(x1, v);
            ones_0 += x0 * shared_ones[j];
            ones_1 += x1 * shared_ones[j];
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        let own = 4u * feature + i;
        store(of_tile, first_feature + own, first_column, column, references[own], ones_0[i], sums_0[i]);
        store(of_tile, first_feature + own + 32u, first_column, column, references[own + 32u], ones_1[i], sums_1[i]);
    }
}

// Brings some rows to the workgroup; features and columns that are not there are those of the edge.
fn load(first_row: u32, rows: u32, last_row: u32, first_feature: u32, first_column: u32, local: u32) {
    let four = local % FOURS;
    let inner = 4u * four + vec4u(0u, 1u, 2u, 3u);
    let m = min(first_feature + inner, vec4u(sizes.features - 1u));
    let c = min(first_column + inner, vec4u(sizes.width - 1u));
    let reference = vec4i(references[4u * four], references[4u * four + 1u], references[4u * four + 2u], references[4u * four + 3u]);
    let last_power = power_at(last_row);
    for (var j = local / FOURS; j < rows; j += 4u) {
        let base = (first_row + j) * sizes.features + m;
        let x = features[base.x];
        let y = features[base.y];
        let z = features[base.z];
        let w = features[base.w];
        let powers = exp2_int4(vec4i(x.exponent, y.exponent, z.exponent, w.exponent) - reference);
        shared_features[j * FOURS + four] = vec4f(x.mantissa, y.mantissa, z.mantissa, w.mantissa) * powers;
        let row = (first_row + j) * sizes.width;
        if four < 8u {
            let by = exp2_int(power_at(first_row + j) - last_power);
            shared_values[j * 8u + four] = vec4f(values[row + c.x], values[row + c.y], values[row + c.z], values[row + c.w]) * by;
        }
        if four == 8u {
            shared_ones[j] = values[row];
        }
    }
}

fn store(of_tile: u32, feature: u32, first_column: u32, column: u32, reference: i32, ones: f32, sums: vec4f) {
    if feature >= sizes.features {
        return;
    }
    let to = (of_tile * sizes.features + feature) * (sizes.width + 1u);
    if first_column == 1u && column == 0u {
        states[to] = stored_reference(reference);
        states[to + 1u] = ones;
    }
    for (var j = 0u; j < 4u; j++) {
        let own = first_column + 4u * column + j;
        if own < sizes.width {
            states[to + 1u + own] = sums[j];
        }
    }
}
