"What decoders do not say: recordings that follow each other, damage that is skipped, headers that state too little or too much, ranges."

import io
import struct
import time

import numpy as np
import pytest
import soundfile as sf

from audiotag.audio import containers
from audiotag.audio.io import ReadOptions, audio_extent, audio_info, read_audio
from audiotag.core.errors import AudiotagError

RATE = 16000
CODECS = {
    "wav": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "float": ("WAV", "FLOAT"),
    "rf64": ("RF64", "PCM_16"),
    "ima": ("WAV", "IMA_ADPCM"),
    "gsm": ("WAV", "GSM610"),
    "g721": ("WAV", "G721_32"),
    "w64": ("W64", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "flac24": ("FLAC", "PCM_24"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
    "dwvw": ("AIFF", "DWVW_16"),
    "au": ("AU", "PCM_16"),
    "g723": ("AU", "G723_24"),
    "caf": ("CAF", "PCM_16"),
    "alac": ("CAF", "ALAC_16"),
}


def sound(seconds, rate=RATE, seed=0):
    "A tone and noise whose loudness changes, so that a variable bit rate varies."
    t, rng = np.arange(int(seconds * rate)) / rate, np.random.default_rng(seed)
    loud = 0.05 + 0.6 * (np.sin(2 * np.pi * 0.9 * t) > 0.3)
    return (loud * (0.3 * np.sin(2 * np.pi * 450 * t) + 0.15 * rng.standard_normal(len(t)))).astype(np.float32)


def encode(codec, x=None, rate=RATE, **kwargs) -> bytes:
    x, out = sound(3) if x is None else x, io.BytesIO()
    container, subtype = CODECS[codec]
    with sf.SoundFile(
        out, "w", rate, 1 if x.ndim == 1 else x.shape[1], format=container, subtype=subtype, **kwargs
    ) as f:
        for i in range(0, len(x), 4096):
            f.write(x[i : i + 4096])
    return out.getvalue()


def put(path, data):
    path.write_bytes(data)
    return path


def fault(path, **kwargs):
    with pytest.raises(AudiotagError) as e:
        read_audio(path, **kwargs)
    return e.value


def check_ranges(path, rate, rng, n=6, to=None):
    whole, out = read_audio(path, sample_rate=to), to or rate
    seconds = min(len(whole) / out, audio_extent(path).seconds)
    places = [sorted(rng.uniform(0, seconds, 2)) for _ in range(n)]
    for a, b in [(0, 0.3), (0.5 * seconds, seconds), (seconds - 0.05, seconds), *places]:
        part, want = read_audio(path, sample_rate=to, start_s=a, end_s=b), whole[round(a * out) : round(b * out)]
        assert len(part) == len(want) and np.abs(part - want).max(initial=0) < 3e-6, (path.name, rate, to, a, b)


@pytest.mark.parametrize("codec", CODECS)
def test_a_range_is_a_slice_of_the_whole(tmp_path, codec):
    rng = np.random.default_rng(len(codec))
    rate = {"gsm": 8000, "opus": 48000, "g723": 8000}.get(codec, 22050)
    path = put(tmp_path / "a", encode(codec, sound(8, rate), rate))
    assert audio_extent(path).frames == len(read_audio(path)) and not audio_extent(path).fault
    check_ranges(path, rate, rng)
    check_ranges(path, rate, rng, n=2, to=16000)


@pytest.mark.parametrize(
    "mode", ["VARIABLE", *(pytest.param(m, marks=pytest.mark.long) for m in ("CONSTANT", "AVERAGE"))]
)
@pytest.mark.parametrize(
    "rate", [8000, 24000, 44100, *(pytest.param(r, marks=pytest.mark.long) for r in (16000, 48000))]
)
def test_ranges_of_mp3(tmp_path, mode, rate):
    "A frame may hold bits of many frames before it, most at low rates."
    rng = np.random.default_rng(rate)
    for level in (0.3, 0.95):
        data = encode("mp3", sound(12, rate), rate, bitrate_mode=mode, compression_level=level)
        check_ranges(put(tmp_path / "a.mp3", data), rate, rng, n=4)
        start = containers._mpeg_frame(data[:4])[0]
        check_ranges(put(tmp_path / "b.mp3", data[start:]), rate, rng, n=2)  # states no length


@pytest.mark.long
def test_ranges_of_many_files(tmp_path):
    rng, n = np.random.default_rng(7), 0
    for codec in ("vorbis", "opus", "mp3", "flac", "wav", "alac", "ima"):
        for rate in (8000, 12000, 24000, 48000):
            for level in (0.0, 0.99) if codec in ("vorbis", "opus", "mp3") else (None,):
                kwargs = {} if level is None else dict(compression_level=level)
                x = sound(rng.uniform(1, 15), rate, seed=n) * 10 ** rng.uniform(-3, 0)
                x = np.stack([x, -x], 1) if n % 5 == 4 else x
                path = put(tmp_path / "a", encode(codec, x.astype(np.float32), rate, **kwargs))
                check_ranges(path, rate, rng, n=4, to=[None, 16000, 44100][n % 3])
                n += 1


# ---- several recordings in one file -----------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [c for c in CODECS if c not in ("dwvw", "g723")])
def test_joined_files_are_heard_in_full(tmp_path, codec):
    rate = {"gsm": 8000, "opus": 48000}.get(codec, RATE)
    one, two = encode(codec, sound(3, rate), rate), encode(codec, sound(2, rate, seed=1), rate)
    first, second = read_audio(put(tmp_path / "a", one)), read_audio(put(tmp_path / "b", two))
    path = put(tmp_path / "c", one + two)
    both = read_audio(path)
    if codec == "mp3":  # the frame that states a length is heard too, and delays are not cut
        assert 0 <= len(both) - len(first) - len(second) < 5 * 1152
    else:
        assert np.array_equal(both, np.concatenate([first, second]))
    assert audio_extent(path).frames == len(both)
    check_ranges(path, rate, np.random.default_rng(0), n=3)


def test_joined_files_of_different_rates_are_named(tmp_path):
    e = fault(put(tmp_path / "a", encode("flac") + encode("flac", sound(1, 8000), 8000)))
    assert e.kind == "unsupported" and "16000 and 8000 Hz" in e.what


def test_streams_at_once_are_named(tmp_path):
    one, two = encode("vorbis"), encode("vorbis")
    two = b"".join(renumbered(page, 77) for page in pages(two))
    mixed = [page for pair in zip(pages(one), pages(two)) for page in pair]
    e = fault(put(tmp_path / "a", b"".join(mixed)))
    assert e.kind == "unsupported" and "2 sound streams" in e.what


def pages(ogg):
    found, at = [], 0
    while at < len(ogg):
        n = ogg[at + 26]
        end = at + 27 + n + sum(ogg[at + 27 : at + 27 + n])
        found.append(ogg[at:end])
        at = end
    return found


def sealed(page):
    "The page with a checksum that is right."
    page = page[:22] + bytes(4) + page[26:]
    return page[:22] + struct.pack("<I", containers._ogg_crc(page)) + page[26:]


def renumbered(page, stream):
    return sealed(page[:14] + struct.pack("<I", stream) + page[18:])


def test_the_checksum_is_oggs():
    for page in pages(encode("vorbis")) + pages(encode("opus")):
        assert sealed(page) == page


# ---- lengths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["vorbis", "opus"])
@pytest.mark.parametrize("more", [100, 7 * 48000])
def test_ogg_whose_last_page_states_more(tmp_path, codec, more):
    whole = pages(encode(codec))
    n = len(read_audio(put(tmp_path / "a", b"".join(whole))))
    last = whole[-1]
    granule = struct.unpack("<q", last[6:14])[0] + more
    path = put(tmp_path / "b", b"".join(whole[:-1]) + sealed(last[:6] + struct.pack("<q", granule) + last[14:]))
    assert audio_info(path).frames > n
    e = audio_extent(path)
    # the last packet may hold a little more than the encoder said
    assert n <= e.frames == len(read_audio(path)) < n + 3000 and ("states" in e.fault or more == 100)
    check_ranges(path, RATE, np.random.default_rng(0), n=3)
    assert fault(path, start_s=e.seconds + 0.01, end_s=e.seconds + 0.02).kind in ("truncated", "out_of_range")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("share", [0.3, 0.61, 0.9])
def test_a_cut_file_has_what_is_there(tmp_path, codec, share):
    data = encode(codec, sound(6))
    whole = read_audio(put(tmp_path / "a", data))
    path = put(tmp_path / "b", data[: int(len(data) * share)])
    e = audio_extent(path)
    assert 0.2 * share < e.frames / len(whole) <= share + 0.2
    part = read_audio(path, start_s=0, end_s=e.seconds)
    assert len(part) == e.frames and np.abs(part[:-4000] - whole[: e.frames - 4000]).max() < 1e-6
    assert fault(path, start_s=e.seconds, end_s=e.seconds + 0.1).kind in ("truncated", "out_of_range", "corrupt_data")


SIZE_OF_SOUND = {  # what a recorder writes last: where it stands, and its width
    "wav": (b"data", 4, 4),
    "aiff": (b"SSND", 4, 4),
    "w64": (containers._W64_DATA, 16, 8),
    "caf": (b"data", 4, 8),
    "au": (b".snd", 8, 4),
}


@pytest.mark.parametrize("codec", SIZE_OF_SOUND)
def test_a_size_of_zero_with_sound_behind_it(tmp_path, codec):
    data, (name, offset, width) = encode(codec), SIZE_OF_SOUND[codec]
    at = data.find(name) + offset
    path = put(tmp_path / "a", data[:at] + bytes(width) + data[at + width :])
    whole = read_audio(put(tmp_path / "b", data))
    assert np.array_equal(read_audio(path), whole) and audio_extent(path).frames == len(whole)
    check_ranges(path, RATE, np.random.default_rng(0), n=3)


def test_two_chunks_of_sound(tmp_path):
    data = encode("wav")
    more = data[:36] + struct.pack("<4sI", b"data", 1000) + data[44:1044]
    path = put(tmp_path / "a", more + data[36:])
    assert len(read_audio(path)) == 500 + 3 * RATE


# ---- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["vorbis", "opus"])
@pytest.mark.parametrize("how", ["changed", "missing", "cut out"])
def test_a_damaged_page_is_named(tmp_path, codec, how):
    whole = pages(encode(codec, sound(12)))
    n, bad = len(whole), whole[len(whole) // 2]
    changed = {"changed": bad[:99] + bytes([bad[99] ^ 1]) + bad[100:], "missing": b"", "cut out": bad[:50]}[how]
    path = put(tmp_path / "a", b"".join([*whole[: n // 2], changed, *whole[n // 2 + 1 :]]))
    e = fault(path)
    assert e.kind == "corrupt_data" and "page" in e.what
    extent = audio_extent(path)
    part = read_audio(path, start_s=0, end_s=extent.seconds)
    assert 2 * RATE < extent.frames == len(part) < 10 * RATE and "page" in extent.fault
    assert np.array_equal(part, read_audio(put(tmp_path / "b", b"".join(whole)))[: len(part)])


@pytest.mark.parametrize("codec", ["flac", "vorbis", "opus"])
@pytest.mark.parametrize("n", [25, pytest.param(300, marks=pytest.mark.long)])
def test_a_changed_bit_anywhere_in_the_sound_is_named(tmp_path, codec, n):
    """These codecs have checksums. In the last page of Ogg, too, which decoders leave out; but a file without a last
    page, since its header is damaged, is a file that was cut off."""
    data, g = encode(codec, sound(6)), np.random.default_rng(1)
    whole, last = read_audio(put(tmp_path / "a", data)), data.rfind(b"OggS") if codec != "flac" else len(data) - 3000
    places = [*g.integers(len(data) // 3, last, n), *g.integers(last + 150, len(data) - 8, 5)]
    for at in map(int, places):
        path = put(tmp_path / "b", data[:at] + bytes([data[at] ^ 1 << g.integers(8)]) + data[at + 1 :])
        e = fault(path)
        assert e.kind in ("corrupt_data", "truncated", "corrupt_header"), at
        if codec != "flac":  # whose extent is what the header states: its checksums are seen when it is decoded
            part = read_audio(path, start_s=0, end_s=audio_extent(path).seconds)
            assert len(part) < len(whole) and np.array_equal(part, whole[: len(part)]), at


def test_an_mp3_that_cannot_be_decoded_to_its_end_is_named(tmp_path):
    data = encode("mp3", sound(10))
    e = fault(put(tmp_path / "a", data[:20000] + np.random.default_rng(0).bytes(3000) + data[20000:]))
    assert e.kind == "corrupt_data"


def test_ranges_of_a_flac_whose_decoder_cannot_seek(tmp_path):
    "The smallest and the largest number of samples in a frame, by which it seeks, are wrong."
    data = encode("flac", sound(0.4))
    whole = read_audio(put(tmp_path / "a", data))
    for sizes in (b"\x10\x9f\x10\0", b"\x10\0\x10\1", b"\x10\0\x10\2"):
        path = put(tmp_path / "b", data[:8] + sizes + data[12:])
        assert np.array_equal(read_audio(path), whole)
        check_ranges(path, RATE, np.random.default_rng(0), n=3)


@pytest.mark.parametrize("codec", CODECS)
def test_a_file_that_ends_in_its_header_is_named(tmp_path, codec):
    "Cut at each of the first bytes."
    data = encode(codec, sound(0.2))
    for n in range(1, 100):
        path = put(tmp_path / "a", data[:n])
        for look in (read_audio, audio_extent, audio_info):
            try:
                look(path)
            except AudiotagError as e:
                assert e.kind in ("truncated", "corrupt_header", "not_audio", "zero_frames", "unsupported"), (n, e)


def test_what_an_alac_that_was_cut_off_holds_can_be_read(tmp_path):
    "Its decoder gives a whole packet where it has a part, and the more, the more samples it is asked for."
    x = np.random.default_rng(0).standard_normal((48000, 2)).astype(np.float32) * 0.2
    out = io.BytesIO()
    sf.write(out, x, RATE, format="CAF", subtype="ALAC_24")
    data = out.getvalue()
    whole, n = read_audio(put(tmp_path / "a", data)), len(data)
    assert len(whole) == 48000
    for end in range(n // 3, n, n // 40):
        path = put(tmp_path / "b", data[:end])
        found = audio_extent(path)
        assert found.fault and found.frames % 4096 == 0 and fault(path).kind == "truncated"
        assert np.array_equal(read_audio(path, end_s=found.seconds), whole[: found.frames])


def test_alac_with_a_table_that_does_not_fit_is_named(tmp_path):
    data = encode("alac")
    at = data.find(b"pakt") + 36
    assert fault(put(tmp_path / "a", data[:at] + b"\xff\x7f" + data[at + 2 :])).kind == "corrupt_data"


@pytest.mark.parametrize("bits", [16, 20, 24, 32])
def test_a_byte_that_is_missing_in_alac_is_named(tmp_path, bits):
    "Its decoder fills what follows with zeros; packets of any number of channels, and of silence, are known as such."
    g = np.random.default_rng(bits)
    # libsndfile cuts off what it cannot compress of 20 bits and several channels, which is found too
    several = np.stack([sound(3, seed=i) * (0.02 if bits == 20 else 1) for i in range(3)], 1)
    for x in (sound(3), several, np.zeros(9000)):
        out = io.BytesIO()
        sf.write(out, x, RATE, format="CAF", subtype=f"ALAC_{bits}")
        data = out.getvalue()
        whole = read_audio(put(tmp_path / "a", data))
        assert len(whole) == len(x) and not audio_extent(tmp_path / "a").fault
        if not x.any():
            continue
        begin = data.index(b"data") + 16
        for at in g.integers(begin, begin + 4 * (len(data) - begin) // 5, 20):
            path = put(tmp_path / "b", data[:at] + data[at + 1 :])
            e = fault(path)
            assert e.kind == "corrupt_data" and "damaged packet" in e.what, at
            if "readable: 0 frames" in e.what:
                with pytest.raises(AudiotagError, match="damaged packet"):
                    audio_extent(path)
                continue
            extent = audio_extent(path)
            assert abs(extent.frames - len(x) * (at - begin) / (len(data) - begin)) < 8192
            assert np.array_equal(read_audio(path, end_s=extent.seconds), whole[: extent.frames]), at


@pytest.mark.parametrize("bits", [16, 24])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_packet_of_alac_that_cannot_be_decoded_is_named(tmp_path, bits, channels):
    "The decoder gives for it what it has in memory: the packet before, or the last one of the file, or zeros."
    g, n = np.random.default_rng(bits), 0
    x = np.stack([sound(1, seed=i) for i in range(channels)], 1)
    out = io.BytesIO()
    sf.write(out, x, RATE, format="CAF", subtype=f"ALAC_{bits}")
    data = out.getvalue()
    whole = read_audio(put(tmp_path / "a", data))
    begin = data.index(b"data") + 16
    for at in map(int, g.integers(begin, len(data) - 60, 30)):
        path = put(tmp_path / "b", data[:at] + g.bytes(40) + data[at + 40 :])
        decoded, clean = (sf.read(io.BytesIO(o), always_2d=True)[0] for o in (path.read_bytes(), data))
        starts = range(0, len(x), 4096)
        bad = [k for k in starts if not np.array_equal(decoded[k : k + 4096], clean[k : k + 4096])]
        # a channel begins as in another packet
        stale = [k for k in bad if any((decoded[k:][:500] == decoded[o:][:500]).all(0).any() for o in starts if o != k)]
        if not stale:
            continue
        n += 1
        e = fault(path)
        assert e.kind == "corrupt_data" and "damaged packet" in e.what
        if stale[0] > 4096 and stale[0] == bad[0]:
            extent = audio_extent(path)
            assert stale[0] - 4096 <= extent.frames <= stale[0]  # the end of the packet before may be damaged, too
            assert np.array_equal(read_audio(path, end_s=extent.seconds), whole[: extent.frames])
        a, b = (stale[0] + 10) / RATE, (stale[0] + 90) / RATE
        assert fault(path, start_s=a, end_s=b).kind == "corrupt_data"
    assert n > 1


def test_periodic_sound_in_alac_is_not_taken_for_damage(tmp_path):
    "Each of its packets gives the samples of the one before it."
    x = np.tile(np.r_[np.full(16, 0.5), np.full(16, -0.5)], 1500)
    for wave in (x, np.stack([x, x], 1), np.zeros(20000), np.ones(20000) / 2):
        sf.write(tmp_path / "a.caf", wave, RATE, subtype="ALAC_16")
        assert len(read_audio(tmp_path / "a.caf")) == audio_extent(tmp_path / "a.caf").frames == len(wave)


@pytest.mark.parametrize("bits", [16, 24])
def test_flac_with_bytes_behind_its_end_is_as_long_as_it_states(tmp_path, bits):
    data = encode("flac" if bits == 16 else "flac24", sound(0.4))
    for tail in (data[1000:], b"x" * 200, bytes(3000)):
        path = put(tmp_path / "a", data + tail)
        assert audio_extent(path).frames == len(read_audio(path)) == round(0.4 * RATE)


# ---- channels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["wav", "float", "flac"])
def test_channels_that_cancel_each_other(tmp_path, capfd, codec):
    x = sound(9)
    quiet = np.where(np.arange(len(x)) < 5 * RATE, -0.9, 0.5).astype(np.float32)  # opposite in the first five seconds
    path = put(tmp_path / f"{codec}.x", encode(codec, np.stack([x, quiet * x], 1)))
    whole = read_audio(path)
    assert "cancel" in capfd.readouterr().err
    left = read_audio(path, reading=ReadOptions(channel=0))
    assert np.array_equal(whole[: 4 * RATE], left[: 4 * RATE])
    assert np.abs(whole[-RATE:] - 0.75 * x[-RATE:]).max() < 0.1 and not np.array_equal(whole[-RATE:], left[-RATE:])
    read_audio(path)
    assert not capfd.readouterr().err  # said once
    check_ranges(path, RATE, np.random.default_rng(0), n=8)


def test_independent_channels_are_averaged(tmp_path, capfd):
    x = np.stack([sound(2, seed=i) for i in range(3)], 1)
    mean = read_audio(put(tmp_path / "a", encode("float", x)))
    assert np.abs(mean - x.mean(1)).max() < 1e-6 and not capfd.readouterr().err


# ---- files that would take hours --------------------------------------------------------------------------------


def chunk(name, content=b"", order="<"):
    return name + struct.pack(order + "I", len(content)) + content


def wav_of(*chunks):
    form = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
    return chunk(b"RIFF", b"WAVE" + form + b"".join(chunks))


def alac_with_table(table, n):
    "With another table of `n` packets."
    data = encode("alac")
    at, rest = data.find(b"pakt"), data.find(b"data")
    return data[:at] + b"pakt" + struct.pack(">qqqii", 24 + len(table), n, 48000, 0, 0) + table + data[rest:]


def alac_with_table_behind(size):
    "A table that stands behind the sound, and states a size."
    data = encode("alac")
    at, rest = data.find(b"pakt"), data.find(b"data")
    return data[:at] + data[rest:] + b"pakt" + struct.pack(">q", size) + data[at + 12 : rest]


# --- frames of mp3 ----------------------------------------------------------------------------------


def mp3_frames(data) -> list:
    "Beginnings of the frames, and the end of the last one."
    starts = [0]
    while frame := containers._mpeg_frame(data[starts[-1] : starts[-1] + 4]):
        starts.append(starts[-1] + frame[0])
    return starts


def longest_zeros(x) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], x == 0, [False]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def set_bits(data, at, value, n) -> bytes:
    "`data` with a number of `n` bits at bit `at`."
    whole, shift = int.from_bytes(data, "big"), 8 * len(data) - at - n
    return (whole & ~((2**n - 1) << shift) | value << shift).to_bytes(len(data), "big")


MP3_DAMAGE = {  # a frame, as bytes, and the bits of its side information: MPEG 2, one channel, at bit 32
    "sound begins where that of another frame lies": lambda f: set_bits(f, 32, min(255, f[4] + 60), 8),
    "sound takes more than there is": lambda f: set_bits(f, 32 + 9, 4095, 12),
    "more values than a frame has": lambda f: set_bits(f, 32 + 9 + 12, 400, 9),
    "a table that does not exist": lambda f: set_bits(set_bits(f, 32 + 9 + 38, 0, 1), 32 + 9 + 39, 14, 5),
    "no window": lambda f: set_bits(set_bits(f, 32 + 9 + 38, 1, 1), 32 + 9 + 39, 0, 2),
    "a part is missing": lambda f: f[: len(f) // 2],
    "something between": lambda f: f + b"\x12\x34" * 100,
    "no head": lambda f: b"\0\0" + f[2:],
}


@pytest.mark.parametrize("what", MP3_DAMAGE)
@pytest.mark.parametrize("k", [20, 60])
@pytest.mark.parametrize("states_length", [True, False])
def test_a_damaged_frame_of_an_mp3_is_named(tmp_path, what, k, states_length):
    data = encode("mp3", sound(4, 22050), 22050, bitrate_mode="CONSTANT", compression_level=0.7)
    at = mp3_frames(data)
    data = data[: at[k]] + MP3_DAMAGE[what](data[at[k] : at[k + 1]]) + data[at[k + 1] :]
    whole = encode("mp3", sound(4, 22050), 22050, bitrate_mode="CONSTANT", compression_level=0.7)
    intact = read_audio(put(tmp_path / "a", whole if states_length else whole[at[1] :]))
    path = put(tmp_path / "b", data if states_length else data[at[1] :])
    e, found = fault(path), audio_extent(path)
    assert e.kind == "corrupt_data" and "damaged frame" in e.what and "damaged frame" in found.fault
    assert 576 * (k - 6) < found.frames < 576 * k
    part = read_audio(path, start_s=0, end_s=found.seconds)
    assert np.abs(part - intact[: len(part)]).max() < 3e-6


def test_checksums_of_mp3_frames():
    "A program that writes all of them wrong is no damage."
    rng = np.random.default_rng(0)
    heads = rng.integers(0, 256, (200, containers._HEAD), np.uint8)
    heads[:, 1], heads[:, 3] = 0xFA, np.where(rng.random(200) < 0.5, 0xC0, 0x40)
    for head in heads:
        crc = 0xFFFF
        for bit in np.unpackbits(np.concatenate([head[2:4], head[6 : 6 + (17 if head[3] == 0xC0 else 32)]])):
            crc = crc << 1 & 0xFFFF ^ (0x8005 if (crc >> 15) != bit else 0)
        head[4:6] = crc >> 8, crc & 255
    for wrong, first in ((), None), ((70,), 70), ((40, 150), 40), (range(200), None):
        changed = heads.copy()
        changed[list(wrong), 5] ^= 1
        check = containers._Mp3Check(True)
        check.check_sums(changed, np.where(changed[:, 3] == 0xC0, 17, 32), np.ones(200, bool))
        assert check.found(0, 1152).get("damage", (None,))[0] == (None if first is None else (first - 1) * 1152 - 1152)


def test_zeros_in_place_of_an_mp3_frame_are_named(tmp_path):
    "The decoder gives them where it cannot decode the sound of a frame, whose side information may be intact."
    x = np.random.default_rng(0).standard_normal(48000).astype(np.float32) * 0.1
    data = encode("mp3", x, bitrate_mode="CONSTANT", compression_level=0.8)
    at, rng, named = mp3_frames(data), np.random.default_rng(1), 0
    for k in range(10, 60):
        start = at[k] + 13  # behind head and side information
        damaged = data[:start] + rng.bytes(at[k + 1] - start) + data[at[k + 1] :]
        path = put(tmp_path / "a", damaged)
        try:
            assert longest_zeros(read_audio(path)[2000:]) < 480
        except AudiotagError as e:
            assert e.kind == "corrupt_data" and "damaged frame" in e.what
            named += 1
    assert named > 3


@pytest.mark.parametrize("n", [12, pytest.param(150, marks=pytest.mark.long)])
def test_no_intact_mp3_is_called_damaged(tmp_path, n):
    "Silence of all lengths, every rate, and files that were cut out of a longer one."
    for i in range(n):
        rng = np.random.default_rng(i)
        rate = int(rng.choice([8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000]))
        x = rng.standard_normal((int(rng.uniform(0.5, 3) * rate), int(rng.integers(1, 3)))) * 10 ** -rng.uniform(0.5, 5)
        for _ in range(rng.integers(0, 6)):
            a = rng.integers(len(x))
            x[a : a + int(2 ** rng.uniform(3, 13))] = 0
        mode, level = rng.choice(["CONSTANT", "VARIABLE", "AVERAGE"]), rng.choice([0.0, 0.3, 0.6, 0.99])
        data = encode("mp3", x.astype(np.float32), rate, bitrate_mode=mode, compression_level=level)
        at = mp3_frames(data)
        for part in (data, data[at[1] :], data[at[rng.integers(1, len(at) - 1)] :], data + b"TAG" + bytes(125)):
            try:
                assert not audio_extent(put(tmp_path / "a", part)).fault, i
                read_audio(tmp_path / "a")
            except AudiotagError as e:
                assert e.kind == "zero_frames", (i, e)


# --- frames of flac ---------------------------------------------------------------------------------


def flac_frames(data) -> list:
    "Beginnings of the frames, found by their heads as a decoder finds them, and the end."
    heads = [i for i in range(42, len(data)) if data[i : i + 2] == b"\xff\xf8"]
    return [i for i in heads if containers._flac_frame_number(data[i : i + 16]) is not None] + [len(data)]


FLAC_DAMAGE = {  # from the frames 0 to 12
    "one is missing": (lambda f: f[:5] + f[6:], 5, "frame 5 is damaged or missing"),
    "several are missing": (lambda f: f[:5] + f[9:], 5, "frame 5 is damaged or missing"),
    "one is there twice": (lambda f: f[:6] + f[5:], 6, "frame 5 is there again"),
    "two are swapped": (lambda f: [*f[:5], f[7], f[6], f[5], *f[8:]], 5, "frame 5 is damaged or missing"),
    "a head is damaged": (lambda f: [*f[:5], bytes([f[5][0], f[5][1], f[5][2] ^ 1]) + f[5][3:], *f[6:]], 5, "frame 5"),
}


@pytest.mark.parametrize("what", FLAC_DAMAGE)
@pytest.mark.parametrize("codec,channels", [("flac", 1), ("flac24", 2)])
def test_a_missing_frame_of_a_flac_is_named(tmp_path, what, codec, channels):
    "Its decoder gives zeros in its place."
    x = np.stack([sound(3.2)] * channels, 1) * np.linspace(1, 0.5, channels).astype(np.float32)
    data = encode(codec, x)
    whole, at = read_audio(put(tmp_path / "a", data)), flac_frames(data)
    frames = [data[a:b] for a, b in zip(at, at[1:])]
    assert len(frames) == 13
    change, n, said = FLAC_DAMAGE[what]
    path = put(tmp_path / "b", data[: at[0]] + b"".join(change(frames)))
    e, found = fault(path), audio_extent(path)
    assert e.kind == "corrupt_data" and said in e.what and said in found.fault and found.frames == n * 4096
    assert np.array_equal(read_audio(path, end_s=found.seconds), whole[: n * 4096])


def test_a_flac_of_thousands_of_frames_is_intact(tmp_path):
    "Their numbers take one to three bytes; those of a file that was cut out do not begin at 0."
    data = encode("flac", np.tile(sound(30), 22).astype(np.float32)[: 2200 * 4096])
    at = flac_frames(data)
    assert len(at) == 2201
    for start in (0, 1, 100, 130, 2100):
        path = put(tmp_path / "a", data[: at[0]] + data[at[start] :])
        assert not containers.survey_file(path).damage
    assert containers.survey_file(put(tmp_path / "a", data[: at[2100]] + data[at[2101] :])).damage[0] == 2100 * 4096


def test_a_page_that_is_there_again_is_named(tmp_path):
    for codec in ("vorbis", "opus"):
        parts = pages(encode(codec, sound(12)))
        k = len(parts) // 2
        path = put(tmp_path / "a", b"".join([*parts[: k + 1], *parts[k:]]))
        assert f"page {k} is there again" in fault(path).what and f"page {k} is there again" in audio_extent(path).fault


N = 2_000_000
HOURS = {
    "empty data chunks": lambda: wav_of(*[chunk(b"data")] * (N // 8)),
    "small data chunks": lambda: wav_of(*[chunk(b"data", b"ab")] * (N // 10)),
    "joined wav": lambda: wav_of(chunk(b"data", b"ab")) * (N // 46),
    "zeros for chunks": lambda: wav_of(bytes(N)),
    "joined au": lambda: (b".snd" + struct.pack(">IIIIIH", 24, 2, 3, RATE, 1, 7)) * (N // 26),
    "joined w64": lambda: (containers._W64_RIFF + struct.pack("<Q", 40) + containers._W64_RIFF) * (N // 40),
    "zeros in caf": lambda: encode("alac")[:60] + bytes(N),
    "a packet of endless size": lambda: alac_with_table(b"\xff" * N, 3),
    "a million packets": lambda: alac_with_table(b"\3" * N, N),
    "a table of 2**62 bytes": lambda: alac_with_table_behind(2**62),
    "a table of 2**63 - 1 bytes": lambda: alac_with_table_behind(2**63 - 1),
    "erased memory in mp3": lambda: encode("mp3")[:8000] + b"\xff" * N,
    "heads of mp3": lambda: encode("mp3")[:8000] + encode("mp3")[:4] * (N // 4),
    "tags in mp3": lambda: encode("mp3")[:8000] + b"ID3\4\0\0\0\0\0\0" * (N // 10),
    "empty blocks of flac": lambda: encode("flac")[:42].replace(b"fLaC\x80", b"fLaC\0") + bytes(N),
    "joined flac": lambda: encode("flac") + (b"fLaC\0\0\0\x22" + bytes(8)) * (N // 16),
    "bytes between pages": lambda: b"".join(p + b"x" * 50 for p in pages(encode("vorbis"))) * (N // 20_000),
}


@pytest.mark.parametrize("what", HOURS)
def test_the_time_grows_with_the_size_of_a_file(tmp_path, what):
    path = put(tmp_path / "a", HOURS[what]())
    begin = time.process_time()
    for look in (audio_info, audio_extent, read_audio):
        try:
            look(path)
        except AudiotagError as e:
            assert e.kind in ("corrupt_header", "corrupt_data", "unsupported", "zero_frames", "truncated"), e
    assert time.process_time() - begin < 8


def test_pieces_are_read_from_any_place(tmp_path):
    g = np.random.default_rng(0)
    whole = put(tmp_path / "a", g.bytes(5000)).read_bytes()
    with open(tmp_path / "a", "rb") as f:
        pieces = [(int(a), int(a + n)) for a, n in zip(g.integers(0, 4000, 40), g.integers(0, 900, 40))] + [b"", b"abc"]
        want = b"".join(p if isinstance(p, bytes) else whole[slice(*p)] for p in pieces)
        seen = containers.PiecesFile(f.fileno(), pieces)
        assert seen.size == len(want)
        for at, n in zip(g.integers(0, len(want) + 9, 300), g.integers(1, 3000, 300)):
            seen.seek(int(at))
            buffer = bytearray(int(n))
            assert bytes(buffer[: seen.readinto(buffer)]) == want[at : at + n]


def test_a_search_finds_what_lies_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(containers._Bytes, "block", 16)
    data = b"".join(b"OggS" + bytes(n) for n in range(40))
    with open(put(tmp_path / "a", data), "rb") as f:
        seen, at, found = containers._Bytes(f.fileno(), len(data)), -1, []
        while (at := seen.find(containers._OGG_PAGE, at + 1)) >= 0:
            found.append(at)
            assert seen.at(at - 20, 5) == data[max(0, at - 20) :][:5] or at < 20
    assert found == [4 * n + n * (n - 1) // 2 for n in range(40)]
