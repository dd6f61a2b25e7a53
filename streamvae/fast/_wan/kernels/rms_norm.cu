// silu(rms_norm(x) * gamma), or the norm alone, over the channels of frames: channels last.
//
// For layers with more channels than one block of causal_conv.cu holds. A warp has whole pixels, 4
// channels (8 bytes) a lane and step, and loads PIXELS of them before it computes: memory is what
// it waits for. Sums are in fp32, rounded once.

constexpr int kChannels = CHANNELS;     // a multiple of 4
constexpr bool kSilu = SILU;
constexpr int kPixels = 4;              // a warp's at a time
constexpr int kWarps = 4;               // of a block
constexpr int kUnits = kChannels / 4;
constexpr int kSteps = (kUnits + 31) / 32;
constexpr int kMaxFrames = 64;

static_assert(kChannels % 4 == 0, "channels are read four at a time");

typedef unsigned int u32;
typedef unsigned long long u64;

// As `NormArguments` in driver.py lays them out. Frames are consecutive in `source`.
struct Arguments {
  const uint2* source;
  uint2* norm;
  const float4* gamma;
  int pixels;                   // of a frame
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

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    rms_norm(const __grid_constant__ Arguments a) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int frame = blockIdx.y, first = (blockIdx.x * kWarps + warp) * kPixels;
  const uint2* from = a.source + (u64(frame) * a.pixels + first) * kUnits;
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
