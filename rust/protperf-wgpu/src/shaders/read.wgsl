// What rows read from a state and from the rows of their own tile: docs/algorithm.md, section 1.
//
//     t_i = max(max_m exponent_im + n_m, max_j exponent of s_ij)
//     [D_i, N_i] = sum_m phi_im 2^(n_m - t_i) S_m + sum_j s_ij 2^(-t_i) [1, v_j]
//
// Mode 0, forward: rows are queries, j <= i; out is N / D, or 0 where D is 0, and den is D as exponent and mantissa.
// Mode 1, backward: rows are keys that read the state of later queries, j >= i; t is 0 and out is N, den is not written.
// With flag 0 there is the state alone. Values and sums of them may be over powers of two; N is over that of the row then,
// which no later row has a part in. A workgroup makes 64 rows times 32 columns of N, and D of those rows; an invocation
// makes 8 rows times 4 columns of it.
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

const ROWS = 64u;
const FOURS = 16u;
const COLUMNS = 32u;
const TERMS = 4u * DEPTH;

// Of the rows.
var<workgroup> row_tops: array<i32, ROWS>;
// Some terms of every sum, TERMS of them: what rows read [TERMS, ROWS], values [TERMS, COLUMNS] and ones [TERMS].
var<workgroup> shared_reads: array<vec4f, TERMS * FOURS>;
var<workgroup> shared_values: array<vec4f, TERMS * 8u>;
var<workgroup> shared_ones: array<f32, TERMS>;

// What a workgroup works on.
struct Block {
    of_tile: u32,
    // Of the batch head; numbers of rows below count from it.
    first_row: u32,
    count: u32,
    // Of the 64 rows, within the tile.
    start: u32,
    state: u32,
    first_column: u32,
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = workgroup_number(group);
    if at >= sizes.invocations / 64u {
        return;
    }
    let across = max((sizes.width + COLUMNS - 2u) / COLUMNS, 1u);
    let blocks = (sizes.tile_rows + ROWS - 1u) / ROWS;
    let of_tile = at / across / blocks;
    let tile = tiles[of_tile % sizes.tiles];
    let start = at / across % blocks * ROWS;
    if start >= tile.count {
        return;
    }
    let batch_head = of_tile / sizes.tiles;
    let state = (batch_head * sizes.states + tile.state) * sizes.features * (sizes.width + 1u);
    // Column 0 of a row of values is its one.
    let first_column = 1u + at % across * COLUMNS;
    let block = Block(of_tile, batch_head * sizes.rows + tile.first, tile.count, start, state, first_column);
    if sizes.mode == 0u {
        row_tops[local] = top_of(block, min(start + local, tile.count - 1u));
    } else {
        row_tops[local] = 0;
    }
    workgroupBarrier();
    let row = local / 8u;
    let column = local % 8u;
    var sums = read_state(block, local);
    if sizes.flag == 1u {
        let state_power = vec4i(power_at(block.first_row));
        let own = read_own(block, local);
        sums.upper = scaled(sums.upper, exp2_int4(state_power - powers_of(block, 4u * row))) + own.upper;
        sums.lower = scaled(sums.lower, exp2_int4(state_power - powers_of(block, 4u * row + 32u))) + own.lower;
        sums.upper_ones += own.upper_ones;
        sums.lower_ones += own.lower_ones;
    }
    for (var i = 0u; i < 4u; i++) {
        store(block, 4u * row + i, column, sums.upper[i], sums.upper_ones[i]);
        store(block, 4u * row + 32u + i, column, sums.lower[i], sums.lower_ones[i]);
    }
}

// What an invocation sums up: of 4 rows, of 4 others, and of the ones of both.
struct Sums {
    upper: mat4x4f,
    lower: mat4x4f,
    upper_ones: vec4f,
    lower_ones: vec4f,
}

// Short segments have no second half.
fn is_tall(block: Block) -> bool {
    return block.count - block.start > 32u;
}

fn read_state(block: Block, local: u32) -> Sums {
    let row = local / 8u;
    var sums = Sums();
    for (var first = 0u; first < sizes.features; first += TERMS) {
        let depth = min(TERMS, sizes.features - first);
        load_state(block, first, depth, local);
        workgroupBarrier();
        for (var m = 0u; m < depth; m++) {
            let x = shared_reads[m * FOURS + row];
            let s = shared_values[m * 8u + local % 8u];
            sums.upper += outer(x, s);
            sums.upper_ones += x * shared_ones[m];
            if is_tall(block) {
                let y = shared_reads[m * FOURS + row + 8u];
                sums.lower += outer(y, s);
                sums.lower_ones += y * shared_ones[m];
            }
        }
        workgroupBarrier();
    }
    return sums;
}

// Sums over the tile's own rows, over the powers of the rows that read.
fn read_own(block: Block, local: u32) -> Sums {
    let row = local / 8u;
    let upper_power = powers_of(block, 4u * row);
    let lower_power = powers_of(block, 4u * row + 32u);
    var sums = Sums();
    for (var first = 0u; first < block.count; first += TERMS) {
        let depth = min(TERMS, block.count - first);
        load_own(block, first, depth, local);
        workgroupBarrier();
        for (var j = 0u; j < depth; j++) {
            let x = shared_reads[j * FOURS + row];
            let v = shared_values[j * 8u + local % 8u];
            // A row that is not seen has read 0, and a power that may be larger.
            let power = vec4i(power_at(block.first_row + first + j));
            sums.upper += outer(x * exp2_int4(min(power - upper_power, vec4i(0))), v);
            sums.upper_ones += x * shared_ones[j];
            if is_tall(block) {
                let y = shared_reads[j * FOURS + row + 8u];
                sums.lower += outer(y * exp2_int4(min(power - lower_power, vec4i(0))), v);
                sums.lower_ones += y * shared_ones[j];
            }
        }
        workgroupBarrier();
    }
    return sums;
}

// The row of a block of 64, or the last one of the tile.
fn inside(block: Block, row: u32) -> u32 {
    return min(block.start + row, block.count - 1u);
}

fn four_inside(block: Block, row: u32) -> vec4u {
    return vec4u(inside(block, row), inside(block, row + 1u), inside(block, row + 2u), inside(block, row + 3u));
}

fn powers_of(block: Block, row: u32) -> vec4i {
    let r = block.first_row + four_inside(block, row);
    return vec4i(power_at(r.x), power_at(r.y), power_at(r.z), power_at(r.w));
}

fn scaled(sums: mat4x4f, by: vec4f) -> mat4x4f {
    return mat4x4f(sums[0] * by.x, sums[1] * by.y, sums[2] * by.z, sums[3] * by.w);
}

fn tops_of(four: u32) -> vec4i {
    return vec4i(row_tops[4u * four], row_tops[4u * four + 1u], row_tops[4u * four + 2u], row_tops[4u * four + 3u]);
}

// Brings some features of the rows and rows of the state to the workgroup.
fn load_state(block: Block, first: u32, depth: u32, local: u32) {
    let four = local % FOURS;
    let row = four_inside(block, 4u * four);
    let base = (block.first_row + row) * sizes.features + first;
    let top = tops_of(four);
    let c = min(block.first_column + 4u * four + vec4u(0u, 1u, 2u, 3u), vec4u(sizes.width - 1u));
    for (var m = local / FOURS; m < depth; m += 4u) {
        let x = features[base.x + m];
        let y = features[base.y + m];
        let z = features[base.z + m];
        let w = features[base.w + m];
        let s = block.state + (first + m) * (sizes.width + 1u);
        let exponents = vec4i(x.exponent, y.exponent, z.exponent, w.exponent) + vec4i(reference_of(states[s]));
        shared_reads[m * FOURS + four] = vec4f(x.mantissa, y.mantissa, z.mantissa, w.mantissa) * exp2_int4(exponents - top);
        if four < 8u {
            shared_values[m * 8u + four] =
                vec4f(states[s + 1u + c.x], states[s + 1u + c.y], states[s + 1u + c.z], states[s + 1u + c.w]);
        }
        if four == 8u {
            shared_ones[m] = states[s + 1u];
        }
    }
}

// Brings some scores and values of the tile's own rows to the workgroup.
fn load_own(block: Block, first: u32, depth: u32, local: u32) {
    let four = local % FOURS;
    let row = four_inside(block, 4u * four);
    let top = tops_of(four);
    let c = min(block.first_column + 4u * four + vec4u(0u, 1u, 2u, 3u), vec4u(sizes.width - 1u));
    for (var at = local / FOURS; at < depth; at += 4u) {
        let j = first + at;
        shared_reads[at * FOURS + four] = vec4f(
            score(block.of_tile, row.x, j, top.x),
            score(block.of_tile, row.y, j, top.y),
            score(block.of_tile, row.z, j, top.z),
            score(block.of_tile, row.w, j, top.w),
        );
        let v = (block.first_row + j) * sizes.width;
        if four < 8u {
            shared_values[at * 8u + four] = vec4f(values[v + c.x], values[v + c.y], values[v + c.z], values[v + c.w]);
        }
        if four == 8u {
            shared_ones[at] = values[v];
        }
    }
}

// The largest exponent of a term of a row.
fn top_of(block: Block, row: u32) -> i32 {
    var top = 2 * EMPTY;
    let base = (block.first_row + row) * sizes.features;
    for (var m = 0u; m < sizes.features; m++) {
        top = max(top, features[base + m].exponent + reference_of(states[block.state + m * (sizes.width + 1u)]));
    }
    let to = (block.of_tile * sizes.tile_rows + row) * sizes.tile_rows;
    for (var j = 0u; j < select(0u, row + 1u, sizes.flag == 1u); j++) {
        top = max(top, scores[to + j].exponent);
    }
    return top;
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

fn store(block: Block, row: u32, column: u32, sums: vec4f, ones: f32) {
    if block.start + row >= block.count {
        return;
    }
    let to = block.first_row + block.start + row;
    let is_seen = ones != 0.0;
    let by = select(1.0, ones, is_seen);
    for (var j = 0u; j < 4u; j++) {
        let own = block.first_column + 4u * column + j;
        if own < sizes.width {
            out[to * sizes.width + own] = select(sums[j], select(0.0, sums[j] / by, is_seen), sizes.mode == 0u);
        }
    }
    if block.first_column > 1u || column > 0u {
        return;
    }
    if sizes.mode == 0u {
        let parts = split(by);
        den[to * 2u] = select(0.0, f32(parts.exponent + row_tops[row]), is_seen);
        den[to * 2u + 1u] = select(0.0, parts.mantissa, is_seen);
    } else {
        out[to * sizes.width] = ones;
    }
}
