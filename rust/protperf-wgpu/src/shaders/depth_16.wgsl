// Fours of inputs of a tile in 16 KB of workgroup memory.
const DEPTH = 8u;
