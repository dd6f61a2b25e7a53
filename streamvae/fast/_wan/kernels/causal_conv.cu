// Convolutions of a causal video decoder for Hopper (sm_90a): bfloat16, channels last, fp32 sums.
//
// One kernel, specialised by the options below, is every convolution of the decoder: 3x3x3 over
// frames and their history, 1x1x1, the convolution in time that doubles the frames, 3x3 after
// nearest 2x upsampling, and the head. Its epilogue adds bias and residual, and writes the sum, or
// silu(rms_norm(sum) * gamma) where the next convolution will read it, or both. It includes no
// header but the multiplication, which is generated (wgmma.py), so that NVRTC needs no toolkit.
//
// A block of 384 threads computes BLOCK_CHANNELS output channels of 16x8 pixels of BLOCK_FRAMES
// frames: warp groups 0 and 1 multiply, each 8x8 pixels, and warp group 2 loads. Blocks stay and
// walk over the tiles.
//
// Note [Halos and taps]
//   Input channels are taken 32 at a time. 32 channels (64 bytes a pixel) of the 18x10 pixels that
//   a tile's taps touch in one frame are a halo. It is loaded once, by TMA, which gives zeros for
//   what lies outside of the picture, and serves all taps in y and x of all output frames whose
//   taps in time fall on it. A tap is then only another start address: shift by (dy * 18 + dx) * 64
//   bytes. An implicit GEMM would read the input once for every tap from L2, and be bound by that.
//
// Note [Swizzle and descriptors]
//   Halos, residuals and weights lie in shared memory with the 64-byte swizzle: within 512 bytes,
//   bits 4..5 of an address are XORed with its bits 7..8. Both TMA and wgmma apply this to the
//   final address, so a matrix may begin at any pixel, also in the middle of a swizzle atom, with
//   any pitch from one group of 8 pixels (a row of the warp group's 8x8) to the next. The
//   descriptor's base offset has to be 0 then. What the PTX manual says of it, bits 7..9 of the
//   address, gives wrong products; the self-test at load would notice a card that differs.
//
// Note [The rings and their barriers]
//   Halos and weights come through two rings in shared memory. Each place of a ring has two
//   barriers: `full`, which the bytes of a load complete, and `empty`, at which the 8 multiplying
//   warps arrive when they have read it. One thread of warp group 2 fills each ring, so far ahead
//   as places are empty. Whoever waits counts its own laps: the parity of a barrier's phase flips
//   with every lap, and loaders start with parity 1, because places are empty before the first.
//   A halo is released when the last output frame that needs it has been multiplied, one stage
//   late: when at most one group of multiplications is in flight, the one before has been read.
//   Weights come as images in reading order, TAPS_PER_STAGE taps a place. After a tile's last halo
//   its residual follows through the same ring, 32 channels of one frame a place.
//
// Note [The order of channels in the epilogue]
//   In an accumulator of wgmma, lane l of a warp holds columns 8j + 2(l % 4) + {0, 1} of row l / 4,
//   for all j. Rows of the weight images are permuted (weights.py), so that column 8j + 2q + b is
//   channel 32 (j / 4) + 8q + 2 (j % 4) + b: each thread has groups of 8 channels side by side,
//   stores 16 bytes at once, and 4 lanes have all channels of a pixel, so that the sum of squares
//   takes two shuffles.
//
// Note [Slots]
//   Frames that a convolution reads lie anywhere in a pool, and a frame of history stays where it
//   is. The arguments say which slot of the pool holds which frame. Taps before the beginning of a
//   video are left out by TAPS_T: with TAPS_T taps of time_taps, only the last of each chunk of
//   weights are read (`weights` points at the first of them, `weight_chunk_bytes` to the next).
//
// Note [Phases]
//   A 3x3 convolution after nearest 2x upsampling is, for each of the 4 positions of an output
//   pixel in its 2x2 square, a 2x2 convolution over the input, whose weights are sums of the 3x3.
//   Position (py, px) reads input rows y - 1 + py and y + py, columns x - 1 + px and x + px; it is
//   the two low bits of the block's channel index. No upsampled tensor, 2.25 times fewer products.

#include "wgmma.cuh"

// ---- Options ------------------------------------------------------------------------------------

enum Kind { kPlain = 0, kUpsample = 1, kDoubleTime = 2, kHead = 3 };

constexpr int kInChannels = IN_CHANNELS;            // a multiple of 32
constexpr int kBlockChannels = BLOCK_CHANNELS;      // a multiple of 32, at most 256; 8 for the head
constexpr int kBlockFrames = BLOCK_FRAMES;          // output frames of a block
constexpr int kTapsT = TAPS_T, kTapsY = TAPS_Y, kTapsX = TAPS_X;
constexpr Kind kKind = Kind(KIND);
constexpr bool kResidual = RESIDUAL;                // add a residual
constexpr bool kWriteSum = WRITE_SUM;               // write the sum; the head: write bfloat16
constexpr bool kWriteNorm = WRITE_NORM;             // write its norm; the head: write uint8
constexpr int kTapsPerStage = TAPS_PER_STAGE;       // of weights
constexpr unsigned kHalos = HALOS;                  // places in the ring of halos
constexpr unsigned kStages = WEIGHT_STAGES;         // places in the ring of weights

// ---- What follows from them ---------------------------------------------------------------------

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int kChunk = 32;                          // input channels of a halo
constexpr u32 kPixelBytes = kChunk * 2;
constexpr int kTileX = 16, kTileY = 8;              // output pixels of a tile
constexpr int kHaloX = kTileX + 2, kHaloY = kTileY + 2;
constexpr u32 kHaloBytes = kHaloX * kHaloY * kPixelBytes;
constexpr u32 kHaloPitch = (kHaloBytes + 511) / 512 * 512;  // places begin where the swizzle does
constexpr u32 kResidualBytes = kTileX * kTileY * kPixelBytes;
constexpr u32 kTapBytes = kBlockChannels * kPixelBytes;
constexpr u32 kStageBytes = kTapBytes * kTapsPerStage;

constexpr int kChunks = kInChannels / kChunk;
constexpr int kHaloFrames = kBlockFrames + kTapsT - 1;      // input frames of a tile
constexpr int kStagesPerFrame = kTapsY * kTapsX / kTapsPerStage;
constexpr int kStagesPerChunk = kTapsT * kStagesPerFrame;
constexpr int kGroups = kBlockChannels / 32;                // groups of 32 output channels
constexpr int kSums = kBlockChannels / 2;                   // accumulators of a thread and frame
constexpr int kMaxFrames = 64;                              // slots of a table
constexpr int kWarpGroup = 128;
constexpr u32 kConsumerWarps = 8;

static_assert(kInChannels % kChunk == 0, "input channels come in chunks");
static_assert(kKind == kHead ? kBlockChannels == 8 : kBlockChannels % 32 == 0, "see the epilogue");
static_assert(kBlockFrames * kSums <= 192, "accumulators have to fit into registers");
static_assert(kTapsY * kTapsX % kTapsPerStage == 0, "a stage belongs to one step in time");
static_assert(kTapsPerStage == 1 || kTapsPerStage % kTapsX == 0, "whole rows of taps, or one tap");
static_assert(kHaloFrames <= kHalos, "all halos of a chunk are in use at once");
static_assert(!kResidual || kKind == kPlain, "a residual lies as the output does");
static_assert(kKind != kHead || !kResidual, "the head has none");

// What cuTensorMapEncodeTiled fills in.
struct alignas(64) TensorMap {
  u64 opaque[16];
};

// As `Arguments` in driver.py lays them out. Sizes are of the input; frames are output frames, but
// for kDoubleTime, which writes two for each.
struct Arguments {
  void* sum;
  void* norm;
  const u8* residual;
  const float* bias;
  const float* gamma;           // of the head that writes uint8: a byte, 0 if there is a NaN
  const u8* weights;
  u32 weight_chunk_bytes;       // from one chunk of input channels to the next
  int frames, height, width;
  int out_channels;             // of a frame that is written
  int channel_blocks, frame_blocks, tiles_x, tiles;
  float scale;                  // of the norm: the root of out_channels
  int in_slots[kMaxFrames], sum_slots[kMaxFrames], norm_slots[kMaxFrames];
};

// ---- Instructions -------------------------------------------------------------------------------

#define INLINE __device__ __forceinline__

INLINE u32 shared_address(const void* pointer) { return u32(__cvta_generic_to_shared(pointer)); }

INLINE void init_barrier(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

INLINE void arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

INLINE void arrive_expecting(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

INLINE void wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1, 0x989680;\n"
      "@done bra end_%=;\n"
      "bra again_%=;\n"
      "end_%=:\n"
      "}" ::"r"(barrier), "r"(parity)
      : "memory");
}

// A box of a tensor (channels, x, y, frame) to shared memory.
INLINE void load_box(u32 to, const TensorMap* map, u32 barrier, int channel, int x, int y, int slot) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(channel),
      "r"(x), "r"(y), "r"(slot)
      : "memory");
}

INLINE void load_bytes(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to), "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

INLINE void prefetch(const void* from, u32 bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// A matrix of rows of 32 channels with the 64-byte swizzle, K-major; `pitch` bytes from 8 rows to
// the next 8. See Note [Swizzle and descriptors].
INLINE u64 descriptor(u32 address, u32 pitch) {
  return u64((address & 0x3ffff) >> 4) | u64(1) << 16 | u64(pitch >> 4) << 32 | u64(2) << 62;
}

// Reads and writes of the epilogue are volatile: let ptxas move them, and it spills a kilobyte.
INLINE float4 load_floats(u32 from) {
  float4 v;
  asm volatile("ld.volatile.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(from)
               : "memory");
  return v;
}

INLINE uint4 load_words(u32 from) {
  uint4 v;
  asm volatile("ld.volatile.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from)
               : "memory");
  return v;
}

INLINE void store_words(u16* to, uint4 v) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

INLINE u32 pack(float low, float high) {
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

INLINE float low_half(u32 word) { return __uint_as_float(word << 16); }
INLINE float high_half(u32 word) { return __uint_as_float(word & 0xffff0000u); }

// x * sigmoid(x), by one instruction of 2^-11 relative error: less than the rounding that follows.
INLINE float silu(float x) {
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(0.5f * x));
  return 0.5f * x * t + 0.5f * x;
}

INLINE float rounded(float x) { return high_half(pack(x, x)); }

// The level of a pixel in [-1, 1], as _pixels.py has it: every step is rounded to bfloat16.
INLINE u8 level(float x) {
  x = fminf(fmaxf(rounded(x), -1.f), 1.f);
  return u8(__float2int_rn(rounded(0.5f * x + 0.5f) * 255.f));
}

// A pointer whose making the compiler does not know: it would make it again at every store.
template <typename T>
INLINE T* opaque(T* pointer) {
  asm volatile("" : "+l"(pointer)::"memory");
  return pointer;
}

// The threads of one warp group wait for each other.
INLINE void sync_group(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

// ---- Shared memory ------------------------------------------------------------------------------

// Halos, weights, then for each multiplying group its bias and gamma (groups may be at different
// tiles), then barriers: as `shared_memory` in options.py counts it.
struct Shared {
  u32 halos, weights, vectors, halo_full, halo_empty, stage_full, stage_empty;

  INLINE explicit Shared(u32 base) {
    halos = base;
    weights = halos + kHalos * kHaloPitch;
    vectors = weights + kStages * kStageBytes;
    halo_full = vectors + 4 * kBlockChannels * u32(sizeof(float));
    halo_empty = halo_full + 8 * kHalos;
    stage_full = halo_empty + 8 * kHalos;
    stage_empty = stage_full + 8 * kStages;
  }

  INLINE u32 bias(int group) const { return vectors + group * 2 * kBlockChannels * 4; }
  INLINE u32 gamma(int group) const { return bias(group) + kBlockChannels * 4; }
};

// A place in a ring, and the parity to wait for there.
template <u32 kPlaces>
struct Cursor {
  u32 place = 0, parity = 0;

  INLINE void advance(u32 steps = 1) {
    place += steps;
    if (place >= kPlaces) {
      place -= kPlaces;
      parity ^= 1;
    }
  }
  INLINE Cursor ahead(u32 steps) const {
    Cursor other = *this;
    other.advance(steps);
    return other;
  }
  INLINE u32 behind(u32 steps) const {
    u32 other = place + kPlaces - steps;
    return other >= kPlaces ? other - kPlaces : other;
  }
};

// Where a tile lies.
struct Tile {
  int channels, frames, x, y;   // which block of channels and of frames; its first pixel

  INLINE Tile(int index, const Arguments& a) {
    channels = index % a.channel_blocks;
    int rest = index / a.channel_blocks;
    frames = rest % a.frame_blocks;
    rest /= a.frame_blocks;
    x = rest % a.tiles_x * kTileX;
    y = rest / a.tiles_x * kTileY;
  }
};

// ---- Loading (loops are not unrolled: these threads have 24 registers) --------------------------

INLINE void load_weights(const Arguments& a, const Shared& shared) {
  Cursor<kStages> at;
  at.parity = 1;
  for (int index = blockIdx.x; index < a.tiles; index += gridDim.x) {
    const u8* from = a.weights + u64(index % a.channel_blocks) * kChunks * a.weight_chunk_bytes;
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; chunk++, from += a.weight_chunk_bytes) {
#pragma unroll 1
      for (int stage = 0; stage < kStagesPerChunk; stage++) {
        wait(shared.stage_empty + 8 * at.place, at.parity);
        u32 full = shared.stage_full + 8 * at.place;
        arrive_expecting(full, kStageBytes);
        load_bytes(shared.weights + at.place * kStageBytes, from + stage * kStageBytes, kStageBytes,
                   full);
        at.advance();
      }
    }
  }
}

// The residual is wanted when a tile's products are done: have it in L2 by then.
INLINE void prefetch_residual(const Arguments& a, const Tile& tile) {
  u32 bytes = u32(min(kTileX, a.width - tile.x)) * a.out_channels * 2;
#pragma unroll 1
  for (int t = 0; t < kBlockFrames; t++) {
    int frame = tile.frames * kBlockFrames + t;
    if (frame >= a.frames) break;
#pragma unroll 1
    for (int y = tile.y; y < min(tile.y + kTileY, a.height); y++) {
      prefetch(a.residual + ((u64(frame) * a.height + y) * a.width + tile.x) * a.out_channels * 2,
               bytes);
    }
  }
}

INLINE void load_halos(const Arguments& a, const Shared& shared, const TensorMap* source,
                       const TensorMap* residual) {
  Cursor<kHalos> at;
  at.parity = 1;
  auto next = [&](u32 bytes, const TensorMap* map, int channel, int x, int y, int slot) {
    wait(shared.halo_empty + 8 * at.place, at.parity);
    u32 full = shared.halo_full + 8 * at.place;
    arrive_expecting(full, bytes);
    load_box(shared.halos + at.place * kHaloPitch, map, full, channel, x, y, slot);
    at.advance();
  };
  for (int index = blockIdx.x; index < a.tiles; index += gridDim.x) {
    const Tile tile(index, a);
    if (kResidual && tile.channels == 0) prefetch_residual(a, tile);
    const int first = tile.frames * kBlockFrames;
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; chunk++) {
#pragma unroll 1
      for (int frame = 0; frame < kHaloFrames; frame++) {
        next(kHaloBytes, source, chunk * kChunk, tile.x - 1, tile.y - 1, a.in_slots[first + frame]);
      }
    }
    if (kResidual) {
#pragma unroll 1
      for (int frame = first; frame < first + kBlockFrames; frame++) {
#pragma unroll 1
        for (int group = 0; group < kGroups; group++) {
          next(kResidualBytes, residual, tile.channels * kBlockChannels + group * 32, tile.x,
               tile.y, frame);
        }
      }
    }
  }
}

// ---- Multiplying --------------------------------------------------------------------------------

// One warp group's work on the tiles of a block.
struct Consumer {
  const Arguments& a;
  const Shared& shared;
  const int group, warp, lane;
  Cursor<kHalos> halo;          // of the first halo of the chunk (of the residual, later)
  Cursor<kStages> stage;
  float sums[kBlockFrames][kSums];

  INLINE Consumer(const Arguments& arguments, const Shared& memory)
      : a(arguments), shared(memory), group(threadIdx.x >> 7), warp((threadIdx.x >> 5) & 3),
        lane(threadIdx.x & 31) {}

  INLINE void release_halo(u32 place) { arrive(shared.halo_empty + 8 * place); }

  // Bias and gamma of a block of channels to shared memory.
  INLINE void load_vectors(int block) {
    sync_group(group);          // no warp of the group may still read those of before
    for (int i = threadIdx.x & 127; i < kBlockChannels; i += kWarpGroup) {
      int from = block * kBlockChannels + i;
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared.bias(group) + 4 * i), "f"(a.bias[from])
                   : "memory");
      if (kWriteNorm && kKind != kHead) {
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared.gamma(group) + 4 * i),
                     "f"(a.gamma[from])
                     : "memory");
      }
    }
    sync_group(group);
  }

  // All products of a tile. `tap` is the place of its first tap in a halo, in bytes.
  INLINE void multiply(u32 tap) {
    int unread = -1;            // the stage of weights that was multiplied last
    for (int chunk = 0; chunk < kChunks; chunk++) {
#pragma unroll 1
      for (int dt = 0; dt < kTapsT; dt++) {
        u32 pixels[kBlockFrames];
#pragma unroll
        for (int t = 0; t < kBlockFrames; t++) {
          Cursor<kHalos> at = halo.ahead(dt + t);
          pixels[t] = shared.halos + at.place * kHaloPitch + tap + group * 8 * kPixelBytes;
          if (dt == 0 || t == kBlockFrames - 1) wait(shared.halo_full + 8 * at.place, at.parity);
        }
#pragma unroll 1
        for (int part = 0; part < kStagesPerFrame; part++) {
          wait(shared.stage_full + 8 * stage.place, stage.parity);
          wgmma_fence();
          multiply_stage(pixels, part, (chunk | dt | part) != 0);
          wgmma_commit();
          wgmma_wait<1>();      // all but this stage has been read
          if (lane == 0) {
            if (unread >= 0) arrive(shared.stage_empty + 8 * unread);
            if (part == 0) release_read_halos(chunk, dt);
          }
          unread = stage.place;
          stage.advance();
        }
      }
      halo.advance(kHaloFrames);
    }
    wgmma_wait<0>();
#pragma unroll
    for (int t = 0; t < kBlockFrames; t++) {
#pragma unroll
      for (int i = 0; i < kSums; i++) asm volatile("" : "+f"(sums[t][i])::"memory");
    }
    if (lane == 0) {
      arrive(shared.stage_empty + 8 * unread);
      release_last_halos();
    }
  }

  INLINE void multiply_stage(const u32 (&pixels)[kBlockFrames], int part, int add) {
    const u32 weights = shared.weights + stage.place * kStageBytes;
#pragma unroll
    for (int j = 0; j < kTapsPerStage; j++) {
      const u32 y = kTapsPerStage % kTapsX == 0 ? part * (kTapsPerStage / kTapsX) + j / kTapsX
                                                : part / kTapsX;
      const u32 x = kTapsPerStage % kTapsX == 0 ? j % kTapsX : part % kTapsX;
      const u32 tap = (y * kHaloX + x) * kPixelBytes;
#pragma unroll
      for (int t = 0; t < kBlockFrames; t++) {
#pragma unroll
        for (int k = 0; k < 2; k++) {   // an instruction multiplies 16 channels
          wgmma(sums[t], descriptor(pixels[t] + tap + k * 32, kHaloX * kPixelBytes),
                descriptor(weights + j * kTapBytes + k * 32, 8 * kPixelBytes), j || k ? 1 : add);
        }
      }
    }
  }

  // At the first stage of a step in time, the step before has read its halos: the first of that
  // step's, or at the beginning of a chunk, all that the chunk before still held.
  INLINE void release_read_halos(int chunk, int dt) {
    if (dt > 0) {
      release_halo(halo.ahead(dt - 1).place);
    } else if (chunk > 0) {
      release_last_halos();
    }
  }

  INLINE void release_last_halos() {
    for (int i = 0; i < kBlockFrames; i++) release_halo(halo.behind(kBlockFrames - i));
  }

  // ---- The epilogue -----------------------------------------------------------------------------

  // Sums of channels 8q to 8q + 7 of group g in row h, of frame t: v[4 * j + b] is channel 2j + b.
  INLINE float* channels(int t, int g, int h) { return &sums[t][g * 16 + 2 * h]; }

  INLINE static uint4 packed(const float* v) {
    return make_uint4(pack(v[0], v[1]), pack(v[4], v[5]), pack(v[8], v[9]), pack(v[12], v[13]));
  }

  INLINE static void add_bias(float* v, float4 low, float4 high) {
    v[0] += low.x, v[1] += low.y, v[4] += low.z, v[5] += low.w;
    v[8] += high.x, v[9] += high.y, v[12] += high.z, v[13] += high.w;
  }

  INLINE static void add_residual(float* v, uint4 r) {
    v[0] += low_half(r.x), v[1] += high_half(r.x), v[4] += low_half(r.y), v[5] += high_half(r.y);
    v[8] += low_half(r.z), v[9] += high_half(r.z), v[12] += low_half(r.w), v[13] += high_half(r.w);
  }

  INLINE void write(const Tile& tile) {
    const int q = lane & 3;
    const int x = tile.x + group * 8 + (lane >> 2);     // this thread's pixels: (x, y), (x, y + 1)
    const int y = tile.y + 2 * warp;
    // Where the first pixel's channels begin in a frame, and how far the second is, in elements.
    // A frame has fewer than 2^32 (driver.py sees to it), a pool may have more.
    u32 first, below, frame_size = u32(a.height) * a.width * a.out_channels;
    int late = 0;                                       // 1: kDoubleTime's second frame
    if (kKind == kUpsample) {
      const int py = tile.channels >> 1 & 1, px = tile.channels & 1;
      first = (u32(2 * y + py) * (2 * a.width) + 2 * x + px) * a.out_channels +
              (tile.channels >> 2) * kBlockChannels + 8 * q;
      below = 4 * a.width * a.out_channels;
      frame_size *= 4;
    } else {
      int block = tile.channels;
      if (kKind == kDoubleTime) {
        late = block >= a.channel_blocks / 2;
        block -= late * (a.channel_blocks / 2);
      }
      first = (u32(y) * a.width + x) * a.out_channels + block * kBlockChannels + 8 * q;
      below = a.width * a.out_channels;
    }
#pragma unroll
    for (int t = 0; t < kBlockFrames; t++) {
      const int frame = tile.frames * kBlockFrames + t;
      if (!kResidual && frame >= a.frames) break;       // a residual has to be taken from the ring
      const bool inside = frame < a.frames && x < a.width;
      u16* sum = nullptr;
      if (kWriteSum) {
        const int slot = a.sum_slots[kKind == kDoubleTime ? 2 * frame + late : frame];
        sum = opaque((u16*)a.sum + u64(slot) * frame_size + first);
      }
      float squares[2] = {0, 0};
#pragma unroll
      for (int g = 0; g < kGroups; g++) {
        const u32 bias = shared.bias(group) + (32 * g + 8 * q) * 4;
        const float4 low = load_floats(bias), high = load_floats(bias + 16);
        if (kResidual) wait(shared.halo_full + 8 * halo.place, halo.parity);
#pragma unroll
        for (int h = 0; h < 2; h++) {
          float* v = channels(t, g, h);
          add_bias(v, low, high);
          if (kResidual) {
            const u32 pixel = (2 * warp + h) * kTileX + group * 8 + (lane >> 2);
            const u32 unit = q ^ (pixel >> 1 & 3);      // the swizzle
            add_residual(v, load_words(shared.halos + halo.place * kHaloPitch +
                                       pixel * kPixelBytes + (unit << 4)));
          }
          if (kWriteSum && inside && y + h < a.height) {
            store_words(sum + h * below + 32 * g, packed(v));
          }
          if (kWriteNorm) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
              squares[h] += v[4 * j] * v[4 * j] + v[4 * j + 1] * v[4 * j + 1];
            }
          }
        }
        if (kResidual) {
          __syncwarp();
          if (lane == 0) release_halo(halo.place);
          halo.advance();
        }
      }
      if (kWriteNorm) write_norm(t, frame, inside, y, first, below, frame_size, squares);
    }
  }

  INLINE void write_norm(int t, int frame, bool inside, int y, u32 first, u32 below, u32 frame_size,
                         const float (&squares)[2]) {
    const int q = lane & 3;
    u16* norm = opaque((u16*)a.norm + u64(a.norm_slots[frame]) * frame_size + first);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float all = squares[h];
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      const float k = rsqrtf(fmaxf(all, 1e-24f)) * a.scale;
#pragma unroll
      for (int g = 0; g < kGroups; g++) {
        const u32 gamma = shared.gamma(group) + (32 * g + 8 * q) * 4;
        const float4 low = load_floats(gamma), high = load_floats(gamma + 16);
        const float* v = channels(t, g, h);
        const uint4 words = make_uint4(pack(silu(v[0] * k * low.x), silu(v[1] * k * low.y)),
                                       pack(silu(v[4] * k * low.z), silu(v[5] * k * low.w)),
                                       pack(silu(v[8] * k * high.x), silu(v[9] * k * high.y)),
                                       pack(silu(v[12] * k * high.z), silu(v[13] * k * high.w)));
        if (inside && y + h < a.height) store_words(norm + h * below + 32 * g, words);
      }
    }
  }

  // The head's 3 channels, [frame, y, x, channel]: lanes q = 0 have the first two, q = 1 the third.
  INLINE void write_pixels(const Tile& tile) {
    const int q = lane & 3;
    const int x = tile.x + group * 8 + (lane >> 2);
    const int y0 = tile.y + 2 * warp;
    float bias[2];
    asm volatile("ld.volatile.shared.v2.f32 {%0, %1}, [%2];"
                 : "=f"(bias[0]), "=f"(bias[1])
                 : "r"(shared.bias(group) + 8 * q)
                 : "memory");
#pragma unroll
    for (int t = 0; t < kBlockFrames; t++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int y = y0 + h, frame = tile.frames * kBlockFrames + t;
        if (x >= a.width || y >= a.height || frame >= a.frames || q >= 2) continue;
        const u64 to = ((u64(frame) * a.height + y) * a.width + x) * 3 + 2 * q;
        const float v0 = sums[t][2 * h] + bias[0], v1 = sums[t][2 * h + 1] + bias[1];
        if (kWriteSum) {
          const u32 both = pack(v0, v1);
          ((u16*)a.sum)[to] = u16(both);
          if (q == 0) ((u16*)a.sum)[to + 1] = u16(both >> 16);
        }
        if (kWriteNorm) {
          if (v0 != v0 || (q == 0 && v1 != v1)) *(u8*)a.gamma = 0;
          ((u8*)a.norm)[to] = level(v0);
          if (q == 0) ((u8*)a.norm)[to + 1] = level(v1);
        }
      }
    }
  }

  INLINE void run() {
    int loaded = -1;            // the block of channels whose vectors are in shared memory
    for (int index = blockIdx.x; index < a.tiles; index += gridDim.x) {
      const Tile tile(index, a);
      int block = tile.channels;
      u32 y = kTapsY == 1 ? 1 : 0, x = kTapsX == 1 ? 1 : 0;     // the first tap's, in the halo
      if (kKind == kUpsample) {
        y = tile.channels >> 1 & 1;
        x = tile.channels & 1;
        block = tile.channels >> 2;
      }
      if (block != loaded) {
        load_vectors(block);
        loaded = block;
      }
      multiply((y * kHaloX + x) * kPixelBytes);
      if constexpr (kKind == kHead) {
        write_pixels(tile);
      } else {
        write(tile);
      }
    }
  }
};

// ---- The kernel ---------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(3 * kWarpGroup, 1)
    causal_conv(const __grid_constant__ TensorMap source, const __grid_constant__ TensorMap residual,
                const __grid_constant__ Arguments a) {
  extern __shared__ __align__(1024) u8 memory[];
  const Shared shared(shared_address(memory));
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < kHalos; i++) {
      init_barrier(shared.halo_full + 8 * i, 1);
      init_barrier(shared.halo_empty + 8 * i, kConsumerWarps);
    }
    for (u32 i = 0; i < kStages; i++) {
      init_barrier(shared.stage_full + 8 * i, 1);
      init_barrier(shared.stage_empty + 8 * i, kConsumerWarps);
    }
    // Loads, which are another proxy's, have to see the barriers too.
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x >= 2 * kWarpGroup) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    const u32 thread = threadIdx.x - 2 * kWarpGroup;
    if (thread == 0) load_weights(a, shared);
    if (thread == 32) load_halos(a, shared, &source, &residual);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    Consumer(a, shared).run();
  }
}
