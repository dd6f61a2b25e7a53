// silu(rms_norm(x) * gamma), or the norm alone, over the channels of frames: channels last.
//
// For layers with more channels than one block of causal_conv.cu holds. A warp has whole pixels, 4
// channels (8 bytes) a lane and step, and loads PIXELS of them before it computes: memory is what
// it waits for. Sums are in fp32, rounded once.
//
// With SHARE it adds a shortcut first, in place: each pixel of an earlier level in each of the 2x2
// pixels of `time` frames that it became. That level has SHARE times as many channels: with 2 of
// them, the even ones go to even rows and the odd ones to odd rows.

constexpr int kChannels = CHANNELS;     // a multiple of 4
constexpr bool kSilu = SILU;
constexpr int kShare = SHARE;           // 0: no shortcut; 1 or 2
constexpr int kPixels = 4;              // a warp's at a time
constexpr int kWarps = 4;               // of a block
constexpr int kUnits = kChannels / 4;
constexpr int kSteps = (kUnits + 31) / 32;
constexpr int kMaxFrames = 64;

static_assert(kChannels % 4 == 0, "channels are read four at a time");

typedef unsigned int u32;
typedef unsigned long long u64;

// As `NormArguments` in driver.py lays them out. Frames are consecutive in `source` and `shortcut`.
struct Arguments {
  uint2* source;
  uint2* norm;
  const float4* gamma;
  const uint2* shortcut;
  int pixels;                   // of a frame
  int width, time;              // of a frame; frames that come of one of the shortcut's
  float scale;                  // the root of the number of channels
  int norm_slots[kMaxFrames];
};

static __device__ __forceinline__ u32 pack(float low, float high) {
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

static __device__ __forceinline__ float4 unpack(uint2 words) {
  return make_float4(__uint_as_float(words.x << 16), __uint_as_float(words.x & 0xffff0000u),
                     __uint_as_float(words.y << 16), __uint_as_float(words.y & 0xffff0000u));
}

static __device__ __forceinline__ float activated(float x) {
  return kSilu ? __fdividef(x, 1.f + __expf(-x)) : x;
}

static __device__ __forceinline__ float half_of(u32 word, int odd) {
  return __uint_as_float(odd ? word & 0xffff0000u : word << 16);
}

// What the shortcut has for four channels, and the sum, rounded.
struct Share {
  uint4 words;

  __device__ __forceinline__ void load(const Arguments& a, u64 from) {
    if (kShare == 1) {
      const uint2 two = __ldg(a.shortcut + from);
      words.x = two.x, words.y = two.y;
    } else {
      words = __ldg((const uint4*)a.shortcut + from);
    }
  }

  __device__ __forceinline__ uint2 added_to(uint2 sums, int odd) const {
    const float4 v = unpack(sums);
    const float4 more = kShare == 1 ? unpack(make_uint2(words.x, words.y))
                                    : make_float4(half_of(words.x, odd), half_of(words.y, odd),
                                                  half_of(words.z, odd), half_of(words.w, odd));
    return make_uint2(pack(v.x + more.x, v.y + more.y), pack(v.z + more.z, v.w + more.w));
  }
};

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    rms_norm(const __grid_constant__ Arguments a) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int frame = blockIdx.y, first = (blockIdx.x * kWarps + warp) * kPixels;
  uint2* from = a.source + (u64(frame) * a.pixels + first) * kUnits;
  uint2* to = a.norm + (u64(a.norm_slots[frame]) * a.pixels + first) * kUnits;
  uint2 words[kPixels][kSteps];
#pragma unroll
  for (int p = 0; p < kPixels; p++) {
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const int unit = s * 32 + lane;
      words[p][s] = make_uint2(0, 0);
      if (first + p < a.pixels && unit < kUnits) words[p][s] = __ldcs(from + p * kUnits + unit);
    }
  }
  if (kShare != 0) {
#pragma unroll
    for (int p = 0; p < kPixels; p++) {
      const int y = (first + p) / a.width, x = (first + p) % a.width;
      if (first + p >= a.pixels) break;
      const u64 pixel =
          u64(frame / a.time) * (a.pixels / 4) + u64(y / 2) * (a.width / 2) + x / 2;
      Share shares[kSteps];             // all loads before the first store
#pragma unroll
      for (int s = 0; s < kSteps; s++) {
        const int unit = s * 32 + lane;
        if (unit < kUnits) shares[s].load(a, pixel * kUnits + unit);
      }
#pragma unroll
      for (int s = 0; s < kSteps; s++) {
        const int unit = s * 32 + lane;
        if (unit >= kUnits) continue;
        words[p][s] = shares[s].added_to(words[p][s], y & 1);
        from[p * kUnits + unit] = words[p][s];
      }
    }
  }
#pragma unroll
  for (int p = 0; p < kPixels; p++) {
    float squares = 0;
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const float4 v = unpack(words[p][s]);
      squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) squares += __shfl_xor_sync(~0u, squares, mask);
    const float k = rsqrtf(fmaxf(squares, 1e-24f)) * a.scale;
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const int unit = s * 32 + lane;
      if (first + p >= a.pixels || unit >= kUnits) continue;
      const float4 v = unpack(words[p][s]), gamma = a.gamma[unit];
      to[p * kUnits + unit] =
          make_uint2(pack(activated(v.x * k * gamma.x), activated(v.y * k * gamma.y)),
                     pack(activated(v.z * k * gamma.z), activated(v.w * k * gamma.w)));
    }
  }
}
