"""Compressed files: whole, in several members, cut, corrupt; and large records, which compress well."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable

from corpus_case import Case, Row, broken, err, mended, rec, reject, same

A, B = "MKTAYIAKQR", "GSHWLEDVNC"
FIRST, SECOND = b">a\nMKTAYIAKQR\n", b">b\nGSHWLEDVNC\n"
BOTH = (rec("a", A), rec("b", B))
UNIT = "ACDEFGHIKLMNPQRSTVWY"


def cut(kind: str) -> tuple[Row, ...]:
    """A fault of the data; the records before it may come out as far as the decoder got."""
    return (*BOTH, broken(kind))


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def flipped(data: bytes, index: int) -> bytes:
    """One bit of one byte changed."""
    changed = bytearray(data)
    changed[index] ^= 1
    return bytes(changed)


def member(data: bytes, flags: int, fields: bytes) -> bytes:
    """A gzip member whose header has optional fields (RFC 1952, 2.3)."""
    body = zlib.compressobj(6, zlib.DEFLATED, -15)
    head = struct.pack("<BBBBIBB", 0x1F, 0x8B, 8, flags, 0, 0, 255) + fields
    if flags & 2:
        head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    return head + body.compress(data) + body.flush() + struct.pack("<II", zlib.crc32(data), len(data))


def bgzf(data: bytes) -> bytes:
    """A block as bgzip writes it: a member that states its own length in an extra field."""
    length = len(member(data, 4, b"\x06\x00BC\x02\x00\x00\x00")) - 1
    return member(data, 4, struct.pack("<HccHH", 6, b"B", b"C", 2, length))


def gzip_cases() -> list[Case]:
    whole = gz(FIRST + SECOND)
    cut_inside = gz(b">a\nMKT") + gz(b"AYIAKQR\n>b\nGSHW") + gz(b"LEDVNC\n")
    return [
        same("plain.fasta.gz", whole, *BOTH),
        same("no_suffix.fasta", whole, *BOTH),
        same("plain_text_named.gz", FIRST + SECOND, *BOTH),
        same("two_members.fasta.gz", gz(FIRST) + gz(SECOND), *BOTH),
        same("members_cut_a_record.fasta.gz", cut_inside, *BOTH),
        same("empty_member.fasta.gz", gz(b"") + gz(FIRST) + gz(b"") + gz(SECOND), *BOTH),
        same("empty_content.fasta.gz", gz(b"")),
        same("empty_member_last.fasta.gz", whole + gz(b""), *BOTH),
        same("empty_members_only.fasta.gz", gz(b"") * 3),
        same("member_a_byte.fasta.gz", b"".join(gz(bytes([byte])) for byte in FIRST + SECOND), *BOTH),
        same(
            "members_cut_a_line_end.fasta.gz", gz(b">a\r") + gz(b"\nMKTAYIAKQR\r") + gz(b"\n>b\r\n" + B.encode()), *BOTH
        ),
        same("stored.fasta.gz", gzip.compress(FIRST + SECOND, 0, mtime=0), *BOTH),
        same("named.fasta.gz", member(FIRST + SECOND, 8, b"other.txt\0"), *BOTH),
        same("all_fields.fasta.gz", member(FIRST + SECOND, 31, b"\x03\x00abcx.fa\0a comment\0"), *BOTH),
        same("header_checksum.fasta.gz", flipped(member(FIRST, 2, b""), 10), *cut("corrupt")),
        same("bgzf.fasta.gz", bgzf(FIRST) + bgzf(SECOND) + bgzf(b""), *BOTH),
        same("bgzf_cut.fasta.gz", bgzf(FIRST) + bgzf(SECOND)[:-3], *cut("truncated")),
        same("bam.fasta", bgzf(b"BAM\x01\x00\x00\x00\x00"), err(1, 1, "format:BAM")),
        same("wrong_method.fasta.gz", b"\x1f\x8b\x07" + whole[3:], *cut("corrupt")),
        same("magic_behind.fasta.gz", whole + whole[:2], *cut("truncated")),
        same("zero_padding.fasta.gz", whole + bytes(1000), *BOTH),
        same("header_cut.fasta.gz", whole[:5], *cut("truncated")),
        same("only_magic.fasta.gz", whole[:2], *cut("truncated")),
        same("data_cut.fasta.gz", whole[: len(whole) // 2], *cut("truncated")),
        same("trailer_cut.fasta.gz", whole[:-3], *cut("truncated")),
        same("second_member_cut.fasta.gz", gz(FIRST) + gz(SECOND)[:-9], *cut("truncated")),
        same("wrong_checksum.fasta.gz", flipped(whole, -6), *cut("corrupt")),
        same("wrong_size.fasta.gz", flipped(whole, -1), *cut("corrupt")),
        same("trailing_text.fasta.gz", whole + b"junk", *cut("trailing_data")),
        same("text_after_padding.fasta.gz", whole + bytes(9) + b"junk", *cut("trailing_data")),
        same("twice.fasta.gz", gz(whole), err(1, 1, "format:gzip inside of another compression")),
        same("fastq.fastq.gz", gz(b"@r\nMK\n+\nII\n"), err(1, 1, "format:FASTQ")),
        same("utf16.fasta.gz", gz("\ufeff>a\nMK\n".encode("utf-16-le")), err(1, 1, "format:UTF-16 text")),
        same("tar.gz", gz(b"x.fasta".ljust(257, b"\0") + b"ustar\x0000"), err(1, 1, "format:a tar archive")),
        same("safetensors.gz", gz(struct.pack("<Q", 8) + b'{"a":{}}'), err(1, 1, "format:safetensors")),
    ]


def bzip2_cases() -> list[Case]:
    whole = bz2.compress(FIRST + SECOND)
    return [
        same("plain.fasta.bz2", whole, *BOTH),
        same("two_streams.fasta.bz2", bz2.compress(FIRST) + bz2.compress(SECOND), *BOTH),
        same("empty_streams.fasta.bz2", bz2.compress(b"") + whole + bz2.compress(b""), *BOTH),
        same("streams_cut_a_record.fasta.bz2", bz2.compress(FIRST[:6]) + bz2.compress(FIRST[6:] + SECOND), *BOTH),
        same("second_stream_cut.fasta.bz2", bz2.compress(FIRST) + bz2.compress(SECOND)[:-5], *cut("truncated")),
        same("empty_content.fasta.bz2", bz2.compress(b"")),
        same("cut.fasta.bz2", whole[:-4], *cut("truncated")),
        same("cut_early.fasta.bz2", whole[:20], *cut("truncated")),
        same("wrong_checksum.fasta.bz2", flipped(whole, 12), *cut("corrupt")),
        same("trailing_text.fasta.bz2", whole + b"junk", *cut("trailing_data")),
    ]


def xz_cases() -> list[Case]:
    whole = lzma.compress(FIRST + SECOND)
    wide = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 28}]
    return [
        same("plain.fasta.xz", whole, *BOTH),
        same("two_streams.fasta.xz", lzma.compress(FIRST) + lzma.compress(SECOND), *BOTH),
        same("padded_streams.fasta.xz", lzma.compress(FIRST) + bytes(8) + lzma.compress(SECOND) + bytes(4), *BOTH),
        same("empty_streams.fasta.xz", lzma.compress(b"") + whole + lzma.compress(b""), *BOTH),
        same("streams_cut_a_record.fasta.xz", lzma.compress(FIRST[:6]) + lzma.compress(FIRST[6:] + SECOND), *BOTH),
        same("second_stream_cut.fasta.xz", lzma.compress(FIRST) + lzma.compress(SECOND)[:-9], *cut("truncated")),
        same("no_check.fasta.xz", lzma.compress(FIRST + SECOND, check=lzma.CHECK_NONE), *BOTH),
        same("crc32.fasta.xz", lzma.compress(FIRST + SECOND, check=lzma.CHECK_CRC32), *BOTH),
        same("sha256.fasta.xz", lzma.compress(FIRST + SECOND, check=lzma.CHECK_SHA256), *BOTH),
        same("empty_content.fasta.xz", lzma.compress(b"")),
        same("cut.fasta.xz", whole[:40], *cut("truncated")),
        same("footer_cut.fasta.xz", whole[:-5], *cut("truncated")),
        same("wrong_checksum.fasta.xz", flipped(whole, whole.index(SECOND) + len(SECOND) + 8), *cut("corrupt")),
        same("trailing_text.fasta.xz", whole + b"junk", *cut("corrupt")),
        same("wide_window.fasta.xz", lzma.compress(FIRST, filters=wide), *cut("window")),
    ]


def zstd_cases(zstd: Callable[..., bytes]) -> list[Case]:
    whole = zstd(FIRST + SECOND, "--check")
    skippable = struct.pack("<II", 0x184D2A53, 4) + b"note"
    # A frame header that asks for a window of 2 GiB, then one raw block.
    wide = struct.pack("<IBB", 0xFD2FB528, 0, 21 << 3) + struct.pack("<I", len(FIRST) << 3 | 1)[:3] + FIRST
    return [
        same("plain.fasta.zst", whole, *BOTH),
        same("no_check.fasta.zst", zstd(FIRST + SECOND, "--no-check"), *BOTH),
        same("two_frames.fasta.zst", zstd(FIRST) + zstd(SECOND), *BOTH),
        same("empty_frames.fasta.zst", zstd(b"") + whole + zstd(b""), *BOTH),
        same("frames_cut_a_record.fasta.zst", zstd(FIRST[:6]) + zstd(FIRST[6:] + SECOND), *BOTH),
        same("second_frame_cut.fasta.zst", zstd(FIRST) + zstd(SECOND)[:-5], *cut("truncated")),
        same("skippable_frames.fasta.zst", skippable + zstd(FIRST) + skippable + zstd(SECOND) + skippable, *BOTH),
        same("empty_content.fasta.zst", zstd(b"")),
        same("cut.fasta.zst", whole[:-12], *cut("truncated")),
        same("checksum_cut.fasta.zst", whole[:-2], *cut("truncated")),
        same("skippable_cut.fasta.zst", zstd(FIRST) + skippable[:-2], *cut("truncated")),
        same("wrong_checksum.fasta.zst", flipped(whole, -1), *cut("corrupt")),
        same("trailing_text.fasta.zst", whole + b"junk", *cut("trailing_data")),
        same("wide_window.fasta.zst", wide, *cut("window")),
    ]


ARCHIVES = [
    same("archive.zip", b"PK\x03\x04\x14\x00\x00\x00\x08\x00", broken("unsupported")),
    same("archive.7z", b"7z\xbc\xaf\x27\x1c\x00\x04", broken("unsupported")),
    same("archive.Z", b"\x1f\x9d\x90\x3e\xc2", broken("unsupported")),
    same("archive.lzma", lzma.compress(FIRST, lzma.FORMAT_ALONE), broken("unsupported")),
    same("archive.lz4", b"\x04\x22\x4d\x18\x64\x40\xa7", broken("unsupported")),
    same("archive.lz", b"LZIP\x01\x0c\x00", broken("unsupported")),
    same("archive.rar", b"Rar!\x1a\x07\x01\x00", broken("unsupported")),
]


def large_cases() -> list[Case]:
    count = 1_000_000
    none = ("record*300000", "", "", "", "empty,no_id")
    left_out = ("reject*300000", "", "1:1", "empty")
    return [
        same(
            "long_line.fasta.gz",
            gz(b">a\n" + UNIT.encode() * count + b"\n>b\nMK\n"),
            rec("a", f"{UNIT}*{count}"),
            rec("b", "MK"),
        ),
        same("long_header.fasta.gz", gz(b">a " + b"x" * 2_000_000 + b"\nMK\n"), rec("a", "MK", about="x*2000000")),
        same("long_id.fasta.gz", gz(b">" + b"x" * 300_000 + b"\nMK\n"), rec("x*300000", "MK")),
        same("many_blank_lines.fasta.gz", gz(b">a\nMK\n" + b"\r\n" * 500_000 + b"TA\n"), rec("a", "MKTA")),
        same("many_trailing_stops.fasta.gz", gz(b">a\nMK" + b"*" * 1_000_000 + b"\n"), rec("a", "MK", "trailing_stop")),
        mended(
            "many_internal_stops.fasta.gz",
            gz(b">a\n" + b"*" * 1_000_000 + b"X\n"),
            rec("a", f"X*{1_000_001}", "internal_stop", "ambiguous"),
            strict=(err(2, 1, "internal_stop"),),
            skip=(reject("a", 2, 1, "internal_stop"),),
        ),
        same("many_comments.fasta.gz", gz(b">a\nM\n" + b";x\n" * 300_000 + b"K\n"), rec("a", "MK")),
        mended("many_marks.fasta.gz", gz(b">\n" * 300_000), none, strict=(err(1, 1, "empty"),), skip=(left_out,)),
    ]


def cases(zstd: Callable[..., bytes]) -> list[Case]:
    return [*gzip_cases(), *bzip2_cases(), *xz_cases(), *zstd_cases(zstd), *ARCHIVES, *large_cases()]
