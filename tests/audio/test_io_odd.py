"""Files as other tools leave them: chunks in a strange order, headers that lie in fields that few look at, rubbish before, between and behind.

Each one has its answer: the number of frames that are there, or the kind of fault."""

import io
import os
import struct
import time

import numpy as np
import pytest
import soundfile as sf

from audiotag.audio.io import audio_info, read_audio
from audiotag.core.errors import AudiotagError

N, RATE = 16000, 16000
WAVE = (0.3 * np.sin(np.arange(N) * 0.1) + 0.02 * np.random.default_rng(0).standard_normal(N)).astype(np.float32)
PCM = (WAVE * 32767).astype("<i2").tobytes()
RUBBISH = np.random.default_rng(1).bytes(3000)


def chunk(name, data, size=None):
    return name + struct.pack("<I", len(data) if size is None else size) + data + b"\0" * (len(data) % 2)


def fmt(tag=1, channels=1, rate=RATE, bits=16, align=None, extra=b""):
    align = channels * bits // 8 if align is None else align
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * align & 2**32 - 1, align, bits) + extra)


def riff(*chunks, magic=b"RIFF", size=None, form=b"WAVE"):
    body = form + b"".join(chunks)
    return magic + struct.pack("<I", len(body) if size is None else size) + body


def encode(container, subtype, rate=RATE, channels=1):
    out = io.BytesIO()
    with sf.SoundFile(out, "w", rate, channels, format=container, subtype=subtype) as f:
        for i in range(0, N, 1000):
            f.write(np.stack([WAVE[i : i + 1000]] * channels, 1))
    return out.getvalue()


def put(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def streaminfo(flac, **fields):
    "Change rate (20 bits), channels-1 (3), bits-1 (5) or the number of samples (36) of a FLAC file."
    value, out = int.from_bytes(flac[18:26], "big"), 0
    for name, width, shift in (("rate", 20, 44), ("channels", 3, 41), ("bits", 5, 36), ("samples", 36, 0)):
        out |= fields.get(name, value >> shift & 2**width - 1) << shift
    return put(flac, 18, out.to_bytes(8, "big"))


SUBFORMAT = bytes.fromhex("0300000000001000800000aa00389b71")
FLOAT = chunk(b"data", WAVE.tobytes())
BAD = chunk(b"data", put(WAVE.tobytes(), 4 * 500, struct.pack("<f", float("nan"))))
DATA, W64, FLAC, MP3, AIFF, CAF, AU = (
    chunk(b"data", PCM),
    encode("W64", "PCM_16"),
    encode("FLAC", "PCM_16"),
    encode("MP3", "MPEG_LAYER_III", 44100),
    encode("AIFF", "PCM_16"),
    encode("CAF", "PCM_16"),
    encode("AU", "PCM_16"),
)
OPUS, COMM = encode("OGG", "OPUS"), AIFF.find(b"COMM")
ID3 = b"ID3\4\0\0\0\0\0\x0a" + bytes(10)


def ext(guid):
    return fmt(0xFFFE, bits=32, extra=struct.pack("<HHI", 22, 32, 4) + guid)


def ds64(size):
    return chunk(b"ds64", struct.pack("<QQQI", size, size, size // 2, 0))


HISTORIC = [
    ("VOC", "PCM_16"),
    ("AVR", "PCM_16"),
    ("PAF", "PCM_16"),
    ("PVF", "PCM_16"),
    ("XI", "DPCM_16"),
    ("WVE", "ALAW"),
]
HISTORIC += [("MAT5", "PCM_16"), ("SDS", "PCM_16"), ("IRCAM", "PCM_16")]

ODD = {
    "odd chunk before fmt": (riff(chunk(b"LIST", b"INFOabc"), fmt(), DATA), N),
    "odd chunk without its pad": (riff(chunk(b"LIST", b"INFOabc")[:-1], fmt(), DATA), N),
    "data before fmt": (riff(DATA, fmt()), "corrupt_header"),
    "no fmt": (riff(DATA), "corrupt_header"),
    "two fmt": (riff(fmt(), fmt(rate=8000), DATA), "corrupt_header"),
    "chunk of 4 GB": (riff(chunk(b"JUNK", b"", 2**32 - 9), fmt(), DATA), "truncated"),
    "zero channels": (riff(fmt(channels=0, align=2), DATA), "corrupt_header"),
    "65535 channels": (riff(fmt(channels=65535, align=2), DATA), "corrupt_header"),
    "0 Hz": (riff(fmt(rate=0), DATA), "corrupt_header"),
    "4 GHz": (riff(fmt(rate=2**32 - 1), DATA), "corrupt_header"),
    "10 MHz": (riff(fmt(rate=10**7), DATA), N),
    "0 bits": (riff(fmt(bits=0, align=0), DATA), "corrupt_header"),
    "64-bit integers": (riff(fmt(bits=64), DATA), "corrupt_header"),
    "MP3 tag": (riff(fmt(0x55), DATA), "corrupt_header"),
    "unknown tag": (riff(fmt(0x7777), DATA), "corrupt_header"),
    "extensible float": (riff(ext(SUBFORMAT), FLOAT), N),
    "extensible float with NaN": (riff(ext(SUBFORMAT), BAD), "non_finite"),
    "extensible of nobody": (riff(ext(b"\xee" * 16), FLOAT), "corrupt_header"),
    "sizes 0": (riff(fmt(), chunk(b"data", PCM, 0), size=0), N),
    "sizes unknown": (riff(fmt(), chunk(b"data", PCM, 2**32 - 1), size=2**32 - 1), N),
    "rubbish behind": (riff(fmt(), DATA) + RUBBISH, N),
    "zeros before": (bytes(16) + riff(fmt(), DATA), "not_audio"),
    "ID3 before WAV": (ID3 + riff(fmt(), DATA), N),
    "RF64": (riff(ds64(len(PCM)), fmt(), chunk(b"data", PCM, 2**32 - 1), magic=b"RF64", size=2**32 - 1), N),
    "RF64 that lies": (riff(ds64(2**63 - 1), fmt(), chunk(b"data", PCM, 2**32 - 1), magic=b"RF64", size=2**32 - 1), N),
    "RF64 without ds64": (riff(fmt(), chunk(b"data", PCM, 2**32 - 1), magic=b"RF64", size=2**32 - 1), "corrupt_header"),
    "W64 that lies": (put(W64, 16, struct.pack("<Q", 2**62)), N),
    "AVI": (riff(chunk(b"LIST", b"hdrl"), form=b"AVI "), "not_audio"),
    "FLAC of more samples": (streaminfo(FLAC, samples=3 * N), "truncated"),
    "FLAC of 2**36 samples": (streaminfo(FLAC, samples=2**36 - 1), "truncated"),
    "FLAC of unknown length": (streaminfo(FLAC, samples=0), N),
    "FLAC of 0 Hz": (streaminfo(FLAC, rate=0), "corrupt_header"),
    "FLAC of 8 channels": (streaminfo(FLAC, channels=7), "corrupt_data"),
    "FLAC of 32 bits": (streaminfo(FLAC, bits=31), "corrupt_header"),
    "FLAC with a wrong MD5": (put(FLAC, 26, b"\xaa" * 16), N),
    "FLAC behind ID3": (ID3 + FLAC, N),
    "FLAC without frames": (FLAC[:42], "truncated"),
    "ID3 alone": (b"ID3\4\0\0\0\0\7\x76" + bytes(1000), "corrupt_header"),
    "MP3 behind ID3 that lies": (b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(1000) + MP3, "corrupt_header"),
    "MP3 behind two ID3": (ID3 + ID3 + MP3, N),
    "MP3 with rubbish between": (MP3[:1700] + RUBBISH + MP3[1700:], "corrupt_data"),
    "MP3 behind rubbish": (b"\x16$q\xb2" + RUBBISH + MP3, "not_audio"),
    "MP3 with ID3v1": (MP3 + b"TAG" + bytes(125), N),
    "ones": (b"\xff" * 5000, "corrupt_header"),
    "Opus cut off": (OPUS[: len(OPUS) * 2 // 3], "truncated"),
    "Opus of no channels": (OPUS.replace(b"OpusHead\1\1", b"OpusHead\1\0"), "corrupt_data"),
    "Ogg header alone": (OPUS[:58], "truncated"),
    "AIFF cut in its header": (AIFF[:40], "truncated"),
    "AIFF of NaN Hz": (put(AIFF, COMM + 16, b"\x7f\xff" + b"\xff" * 8), "corrupt_header"),
    "AIFF of no channels": (put(AIFF, COMM + 8, bytes(2)), "corrupt_header"),
    "AIFF of 2**32 frames": (put(AIFF, COMM + 10, b"\xff" * 4), N),
    "CAF of infinite Hz": (put(CAF, 20, struct.pack(">d", float("inf"))), "corrupt_header"),
    "CAF of NaN Hz": (put(CAF, 20, struct.pack(">d", float("nan"))), "corrupt_header"),
    "CAF cut off": (CAF[: 4096 + N], N // 2),
    "AU of unknown length": (put(AU, 8, b"\xff" * 4), N),
    "AU that begins behind its end": (put(AU, 4, b"\x7f\xff\xff\xff"), "zero_frames"),
    "AU of no channels": (put(AU, 20, bytes(4)), "corrupt_header"),
    "AAC, MPEG-2 with a checksum": (b"\xff\xf8" + RUBBISH, "unsupported"),
    "AAC, ADIF": (b"ADIF" + RUBBISH, "unsupported"),
    "AAC, LATM": (b"\x56\xe0" + RUBBISH, "unsupported"),
    "AAC behind ID3": (ID3 + b"\xff\xf1\x50\x80" + RUBBISH, "unsupported"),
    "AAC in WAV": (riff(fmt(0x1610), DATA), "unsupported"),
    "AAC in CAF": (put(CAF, 28, b"aac "), "unsupported"),
    "Speex": (OPUS.replace(b"OpusHead", b"Speex   "), "unsupported"),
    **{f"libsndfile's {c}": (encode(c, s), "unsupported") for c, s in HISTORIC},
    "MIDI": (b"MThd\0\0\0\6\0\1\0\1\0\x60", "not_audio"),
    "UTF-16": ("RIFF".encode("utf-16"), "corrupt_header"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files(tmp_path, capfd, name):
    data, want = ODD[name]
    path, start = tmp_path / "odd.wav", time.monotonic()
    path.write_bytes(data)
    for kwargs in ({}, dict(sample_rate=8000)):
        try:
            x = read_audio(path, **kwargs)
        except AudiotagError as e:
            assert e.kind == want and str(path) in str(e) and e.what
        else:
            assert want in (N, N // 2) and len(x) == (
                -(-want * 8000 // audio_info(path).sample_rate) if kwargs else want
            )
            assert x.dtype == np.float32 and np.isfinite(x).all() and x.any()
    assert time.monotonic() - start < 5 and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "target,kind",
    [
        ("/dev/zero", "not_a_file"),
        ("/proc/self/mem", "zero_bytes"),
        ("nowhere", "missing"),
        ("link.wav", "io_error"),
        (".", "not_a_file"),
    ],
)
def test_links_that_lead_to_no_sound(tmp_path, target, kind):
    os.symlink(target, tmp_path / "link.wav")
    with pytest.raises(AudiotagError) as e:
        read_audio(tmp_path / "link.wav")
    assert e.value.kind == kind
