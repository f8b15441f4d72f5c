// What every stage of a network shares. Rows of activations are padded with zeros to a multiple of four numbers, so that
// they can be read in fours.

struct Extents {
    invocations: u32,
    // Rows of activations; of queries where there are others.
    rows: u32,
    // Fours of a row that is read.
    inputs: u32,
    // Fours of a row that is written.
    outputs: u32,
    // Numbers of a row without what pads it.
    width: u32,
    heads: u32,
    first_head: u32,
    head_dim: u32,
    // Rows of keys.
    keys: u32,
    tiles: u32,
    tile_rows: u32,
    // Fours of keys that a row of a tile sees at most.
    tile_keys: u32,
    // Fours of scores of each head.
    scores: u32,
    mode: u32,
    factor: f32,
    padding: u32,
}

@group(0) @binding(0) var<uniform> extents: Extents;

// Some queries, and the keys of their sequence.
struct QueryTile {
    first: u32,
    count: u32,
    first_key: u32,
    keys: u32,
    // Keys that a query sees without those from its own place on; all of them where it sees every key.
    before: u32,
    // Fours of scores of its head before its own.
    scores: u32,
}

// Fours of scores of a row of a tile.
fn fours(tile: QueryTile) -> u32 {
    return (tile.keys + 3u) / 4u;
}

// Keys that a row of a tile sees; in mode 1 those up to its own place.
fn seen(tile: QueryTile, row: u32) -> u32 {
    return select(tile.keys, min(tile.keys, tile.before + row + 1u), extents.mode == 1u);
}
