// Products with a matrix: out_n = W x_n, in mode 1 added to what is there. A workgroup makes 64 rows times 64
// columns, so that a number that is read serves 64 products; an invocation makes 8 rows times 8 columns of it.
//
// Rows of an invocation are 8 apart, and so are its fours of columns: then neighbours read neighbouring fours of the
// workgroup's memory, and no two of them the same bank.

// [rows, I]
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
// transposed [I, O]
@group(0) @binding(2) var<storage, read> weights: array<vec4f>;
// [rows, O]
@group(0) @binding(3) var<storage, read_write> out: array<vec4f>;

const ROWS = 64u;
// Fours of columns.
const COLUMNS = 16u;

// Some inputs, DEPTH fours of them: [DEPTH, ROWS] and [4 DEPTH, COLUMNS].
var<workgroup> shared_x: array<vec4f, DEPTH * ROWS>;
var<workgroup> shared_weights: array<vec4f, 4u * DEPTH * COLUMNS>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = workgroup_number(group);
    if at >= extents.invocations / 64u {
        return;
    }
    let across = (extents.outputs + COLUMNS - 1u) / COLUMNS;
    let first_column = at % across * COLUMNS;
    let first_row = at / across * ROWS;
    let row = local / 8u;
    let column = local % 8u;
    var sums_00 = mat4x4f();
    var sums_01 = mat4x4f();
    var sums_10 = mat4x4f();
    var sums_11 = mat4x4f();
    for (var start = 0u; start < extents.inputs; start += DEPTH) {
        let depth = min(DEPTH, extents.inputs - start);
        load(first_row, first_column, start, depth, local);
        workgroupBarrier();
        for (var i = 0u; i < depth; i++) {
            let own = i * ROWS + row;
            let upper = transpose(mat4x4f(shared_x[own], shared_x[own + 8u], shared_x[own + 16u], shared_x[own + 24u]));
            let lower = transpose(mat4x4f(shared_x[own + 32u], shared_x[own + 40u], shared_x[own + 48u], shared_x[own + 56u]));
            let w = 4u * i * COLUMNS + column;
            let a0 = shared_weights[w];
            let a1 = shared_weights[w + COLUMNS];
            let a2 = shared_weights[w + 2u * COLUMNS];
            let a3 = shared_weights[w + 3u * COLUMNS];
            let b0 = shared_weights[w + 8u];
            let b1 = shared_weights[w + COLUMNS + 8u];
            let b2 = shared_weights[w + 2u * COLUMNS + 8u];
            let b3 = shared_weights[w + 3u * COLUMNS + 8u];
            // One term after the other, without a loop: there is a limit to the loops of an invocation.
            sums_00 = sums_00 + outer(upper[0], a0) + outer(upper[1], a1) + outer(upper[2], a2) + outer(upper[3], a3);
            sums_01 = sums_01 + outer(upper[0], b0) + outer(upper[1], b1) + outer(upper[2], b2) + outer(upper[3], b3);
            sums_10 = sums_10 + outer(lower[0], a0) + outer(lower[1], a1) + outer(lower[2], a2) + outer(lower[3], a3);
            sums_11 = sums_11 + outer(lower[0], b0) + outer(lower[1], b1) + outer(lower[2], b2) + outer(lower[3], b3);
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        let above = first_row + row + 8u * i;
        store(above, first_column + column, sums_00[i]);
        store(above, first_column + column + 8u, sums_01[i]);
        store(above + 32u, first_column + column, sums_10[i]);
        store(above + 32u, first_column + column + 8u, sums_11[i]);
    }
}

// Brings inputs from `start` on to the workgroup; rows and columns that are not there are those of the edge.
fn load(first_row: u32, first_column: u32, start: u32, depth: u32, local: u32) {
    let own = min(first_row + local, extents.rows - 1u) * extents.inputs + start;
    let column = min(first_column + local % COLUMNS, extents.outputs - 1u);
    for (var i = 0u; i < depth; i++) {
        shared_x[i * ROWS + local] = x[own + i];
        let input = 4u * i + local / COLUMNS;
        shared_weights[input * COLUMNS + local % COLUMNS] = weights[(4u * start + input) * extents.outputs + column];
    }
}

fn store(row: u32, column: u32, sums: vec4f) {
    if row < extents.rows && column < extents.outputs {
        let to = row * extents.outputs + column;
        out[to] = select(sums, out[to] + sums, extents.mode == 1u);
    }
}
