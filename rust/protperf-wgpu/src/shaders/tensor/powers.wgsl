// The power of two that each row of values is divided by: docs/algorithm.md, section 11.
//
//     M_j = max(largest of the first state, max_{j' <= j} largest_j'),   power_j = power_of(M_j)
//
// and over all keys where every query sees them. Step 0: the largest of each tile. Step 1: the largest before each tile, and
// that of a segment, which is a fact of it from now on. Step 2: the powers. An invocation walks a tile, or the tiles of a
// segment, which are at most 65,535. BH: batch entries times heads, those of one group.

struct Tile {
    segment: u32,
    first: u32,
    count: u32,
    state: u32,
}

// [tiles]
@group(0) @binding(1) var<storage, read> tiles: array<Tile>;
// first tile and number of tiles of each segment
@group(0) @binding(2) var<storage, read> segments: array<vec2u>;
// [BH, S]
@group(0) @binding(3) var<storage, read> largest_of: array<u32>;
// [BH, segments, 2]
@group(0) @binding(4) var<storage, read_write> facts: array<u32>;
// [BH, tiles]
@group(0) @binding(5) var<storage, read_write> of_tiles: array<u32>;
// [BH, S]
@group(0) @binding(6) var<storage, read_write> powers: array<i32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= shape.invocations {
        return;
    }
    if shape.step == 1u {
        walk_segment(at);
        return;
    }
    let tile = tiles[at % shape.tiles];
    let batch_head = at / shape.tiles;
    let first = batch_head * shape.rows + tile.first;
    var largest = 0u;
    if shape.step == 2u {
        largest = of_tiles[at];
        if shape.causal == 0u {
            largest = facts[(batch_head * shape.segments + tile.segment) * 2u + 1u];
        }
    }
    for (var row = first; row < first + tile.count; row++) {
        largest = max(largest, largest_of[row]);
        if shape.step == 2u {
            powers[row] = power_of(largest);
        }
    }
    if shape.step == 0u {
        of_tiles[at] = largest;
    }
}

fn walk_segment(at: u32) {
    let segment = segments[at % shape.segments];
    let first = at / shape.segments * shape.tiles + segment.x;
    var largest = facts[at * 2u + 1u];
    for (var tile = first; tile < first + segment.y; tile++) {
        let own = of_tiles[tile];
        of_tiles[tile] = largest;
        largest = max(largest, own);
    }
    facts[at * 2u + 1u] = largest;
}
