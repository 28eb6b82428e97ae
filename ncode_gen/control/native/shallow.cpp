// A field with one hidden layer, f(t, x) = W2' a(W1' x + b1 + t s) + b2, whose weights are each sample's own, solved by
// an explicit Runge-Kutta method on a grid, sample by sample: a sample's weights stay in the core's own cache through
// all evaluations, forwards and backwards, where a solve of the whole batch reads them from memory at each.
//
// Packed weights of a sample, row by row: W1 (d, h), b1 (h), s (h, if the field sees the time), W2 (h, d), b2 (d).
// Rows are taken in vectors of W floats; sizes that are no multiples of W are padded with zeros in a sample's scratch.
//
// Gradients of weights: with the inputs X and the cotangents G of all evaluations of a point as rows, dW = X' G, one
// product a point instead of an outer product an evaluation.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

enum Activation { TANH = 0, SOFTPLUS = 1, SILU = 2 };

template <int W> struct Simd {
    typedef float vec __attribute__((vector_size(4 * W)));
    typedef int32_t ints __attribute__((vector_size(4 * W)));
    typedef float loose __attribute__((vector_size(4 * W), aligned(4)));
    static vec load(const float* p) { return *reinterpret_cast<const loose*>(p); }
    static void store(float* p, vec v) { *reinterpret_cast<loose*>(p) = v; }
    static vec all(float x) { return x - vec{}; }
    static vec choose(ints mask, vec yes, vec no) { return (vec)((mask & (ints)yes) | (~mask & (ints)no)); }
    static vec minimum(vec a, vec b) { return choose(a < b, a, b); }
    static vec maximum(vec a, vec b) { return choose(a > b, a, b); }
    static vec magnitude(vec a) { return (vec)((ints)a & 0x7fffffff); }

    // exp for x <= 0: x = n log 2 + r, a Taylor series of degree 7 in r (its remainder is below 6e-9 for |r| <= 0.35).
    static vec exp_negative(vec x) {
        x = maximum(x, all(-87.0f));
        const vec shift = all(12582912.0f);  // 1.5 x 2^23 rounds to an integer
        vec rounded = x * 1.44269504f + shift, n = rounded - shift;
        vec r = x - n * 0.693145752f;
        r = r - n * 1.42860677e-6f;
        vec y = all(1.0f / 5040.0f);
        y = y * r + 1.0f / 720.0f;
        y = y * r + 1.0f / 120.0f;
        y = y * r + 1.0f / 24.0f;
        y = y * r + 1.0f / 6.0f;
        y = y * r + 0.5f;
        y = y * r + 1.0f;
        y = y * r + 1.0f;
        ints power = ((ints)rounded - (ints)shift + 127) << 23;
        return y * (vec)power;
    }

    // log(1 + u) for 0 <= u <= 1, as 2 artanh(u / (2 + u)), by its series.
    static vec log1p_unit(vec u) {
        vec s = u / (u + 2.0f), q = s * s;
        vec y = all(2.0f / 15.0f);
        y = y * q + 2.0f / 13.0f;
        y = y * q + 2.0f / 11.0f;
        y = y * q + 2.0f / 9.0f;
        y = y * q + 2.0f / 7.0f;
        y = y * q + 2.0f / 5.0f;
        y = y * q + 2.0f / 3.0f;
        y = y * q + 2.0f;
        return y * s;
    }

    // x P(x^2) / Q(x^2), fitted on |x| <= 9 by reweighted least squares (eval/fit_tanh.py); relative error below 4e-7.
    static vec tanh(vec x) {
        vec y = minimum(maximum(x, all(-9.0f)), all(9.0f)), q = y * y;
        vec above = all(1.33373081e-08f);
        above = above * q + 2.05966456e-05f;
        above = above * q + 3.49483545e-03f;
        above = above * q + 1.33803928e-01f;
        above = above * q + 9.99999979e-01f;
        vec below = all(7.76948284e-07f);
        below = below * q + 3.28440184e-04f;
        below = below * q + 2.58741215e-02f;
        below = below * q + 4.67137082e-01f;
        below = below * q + 1.0f;
        vec result = minimum(maximum(y * above / below, all(-1.0f)), all(1.0f));
        return choose(x == x, result, x);
    }

    static vec sigmoid(vec x) {
        vec e = exp_negative(-magnitude(x));
        return choose(x > vec{}, all(1.0f), e) / (1.0f + e);
    }

    // What is kept of a unit between the passes: a(u) for tanh, whose slopes follow from it; u itself for the others.
    static vec kept(int activation, vec u) { return activation == TANH ? tanh(u) : u; }

    static vec value(int activation, vec kept) {
        if (activation == TANH) return kept;
        if (activation == SILU) return kept * sigmoid(kept);
        vec result = maximum(kept, vec{}) + log1p_unit(exp_negative(-magnitude(kept)));
        return choose(kept == kept, result, kept);
    }

    static vec slope(int activation, vec kept) {
        if (activation == TANH) return 1.0f - kept * kept;
        vec gate = sigmoid(kept);
        return activation == SOFTPLUS ? gate : gate * (1.0f + kept * (1.0f - gate));
    }

    static vec curvature(int activation, vec kept) {
        if (activation == TANH) return -2.0f * kept * (1.0f - kept * kept);
        vec gate = sigmoid(kept), change = gate * (1.0f - gate);
        return activation == SOFTPLUS ? change : change * (2.0f + kept * (1.0f - 2.0f * gate));
    }
};

// out (+)= matrix' x for a matrix of `rows` rows of `stride` floats; columns are N vectors from `matrix` on.
template <int W, int N, bool ADD> void columns(const float* matrix, int rows, int stride, const float* x, float* out) {
    using S = Simd<W>;
    using vec = typename S::vec;
    // A chain of sums waits for its last term: few columns are summed in several chains.
    constexpr int CHAINS = N >= 4 ? 1 : 4 / N;
    vec sums[CHAINS][N] = {};
    if (ADD) {
        UNROLL for (int j = 0; j < N; j++) sums[0][j] = S::load(out + j * W);
    }
    int i = 0;
    for (; i + CHAINS <= rows; i += CHAINS) {
        UNROLL for (int c = 0; c < CHAINS; c++) {
            const float* row = matrix + (size_t)(i + c) * stride;
            UNROLL for (int j = 0; j < N; j++) sums[c][j] += x[i + c] * S::load(row + j * W);
        }
    }
    for (; i < rows; i++) {
        UNROLL for (int j = 0; j < N; j++) sums[0][j] += x[i] * S::load(matrix + (size_t)i * stride + j * W);
    }
    UNROLL for (int c = 1; c < CHAINS; c++) {
        UNROLL for (int j = 0; j < N; j++) sums[0][j] += sums[c][j];
    }
    UNROLL for (int j = 0; j < N; j++) S::store(out + j * W, sums[0][j]);
}

// out (+)= matrix' x, with `width` columns, a multiple of W.
template <int W, bool ADD> void product(const float* matrix, int rows, int width, const float* x, float* out) {
    int j = 0;
    for (; j + 8 * W <= width; j += 8 * W) columns<W, 8, ADD>(matrix + j, rows, width, x, out + j);
    for (; j + 4 * W <= width; j += 4 * W) columns<W, 4, ADD>(matrix + j, rows, width, x, out + j);
    for (; j + 2 * W <= width; j += 2 * W) columns<W, 2, ADD>(matrix + j, rows, width, x, out + j);
    for (; j < width; j += W) columns<W, 1, ADD>(matrix + j, rows, width, x, out + j);
}

// M rows and N vectors of columns of out (+)= left' right; both have `count` rows.
template <int W, int M, int N>
void tile(const float* left, int lefts, const float* right, int width, int count, float* out, bool add) {
    using S = Simd<W>;
    using vec = typename S::vec;
    vec sums[M][N] = {};
    for (int k = 0; k < count; k++) {
        vec row[N];
        UNROLL for (int j = 0; j < N; j++) row[j] = S::load(right + (size_t)k * width + j * W);
        UNROLL for (int i = 0; i < M; i++) {
            float x = left[(size_t)k * lefts + i];
            UNROLL for (int j = 0; j < N; j++) sums[i][j] += x * row[j];
        }
    }
    UNROLL for (int i = 0; i < M; i++) {
        UNROLL for (int j = 0; j < N; j++) {
            float* place = out + (size_t)i * width + j * W;
            S::store(place, add ? S::load(place) + sums[i][j] : sums[i][j]);
        }
    }
}

template <int W, int N>
void tiles(const float* left, int lefts, int rows, const float* right, int width, int count, float* out, bool add) {
    int i = 0;
    for (; i + 4 <= rows; i += 4) tile<W, 4, N>(left + i, lefts, right, width, count, out + (size_t)i * width, add);
    for (; i < rows; i++) tile<W, 1, N>(left + i, lefts, right, width, count, out + (size_t)i * width, add);
}

// out (rows, width) (+)= left' right, with `lefts` floats in a row of `left`.
template <int W>
void outer_products(
    const float* left, int lefts, int rows, const float* right, int width, int count, float* out, bool add) {
    int j = 0;
    for (; j + 4 * W <= width; j += 4 * W) tiles<W, 4>(left, lefts, rows, right + j, width, count, out + j, add);
    for (; j < width; j += W) tiles<W, 1>(left, lefts, rows, right + j, width, count, out + j, add);
}

// One stage of a transposition of W rows: the halves of each pair of blocks of `size` floats change places.
template <int W, int SIZE> void exchange(typename Simd<W>::vec* rows) {
    using ints = typename Simd<W>::ints;
    ints low, high;
    for (int k = 0; k < W; k++) {
        bool upper = k & SIZE;
        low[k] = upper ? k - SIZE + W : k;
        high[k] = upper ? k + W : k + SIZE;
    }
    UNROLL for (int i = 0; i < W; i++) {
        if (i & SIZE) continue;
        auto a = rows[i], b = rows[i + SIZE];
#if defined(__clang__)
        for (int k = 0; k < W; k++) {
            rows[i][k] = low[k] < W ? a[low[k]] : b[low[k] - W];
            rows[i + SIZE][k] = high[k] < W ? a[high[k]] : b[high[k] - W];
        }
#else
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i + SIZE] = __builtin_shuffle(a, b, high);
#endif
    }
    if constexpr (SIZE > 1) exchange<W, SIZE / 2>(rows);
}

// out (columns, rows) = matrix (rows, columns)', both sizes multiples of W.
template <int W> void transpose(const float* matrix, int rows, int columns, float* out) {
    using S = Simd<W>;
    for (int i = 0; i < rows; i += W) {
        for (int j = 0; j < columns; j += W) {
            typename S::vec block[W];
            UNROLL for (int k = 0; k < W; k++) block[k] = S::load(matrix + (size_t)(i + k) * columns + j);
            exchange<W, W / 2>(block);
            UNROLL for (int k = 0; k < W; k++) S::store(out + (size_t)(j + k) * rows + i, block[k]);
        }
    }
}

int round_up(int size, int multiple) { return (size + multiple - 1) / multiple * multiple; }

void copy_rows(const float* from, int rows, int width, float* to, int stride) {
    for (int i = 0; i < rows; i++) {
        std::memcpy(to + (size_t)i * stride, from + (size_t)i * width, width * sizeof(float));
        std::fill(to + (size_t)i * stride + width, to + (size_t)(i + 1) * stride, 0.0f);
    }
}

void crop_rows(const float* from, int rows, int stride, float* to, int width) {
    for (int i = 0; i < rows; i++) std::memcpy(to + (size_t)i * width, from + (size_t)i * stride, width * sizeof(float));
}

}  // namespace

extern "C" {

struct Problem {
    int32_t samples, points, dim, hidden, sees_time, activation, steps, stages, kept, threads;
    const float *a, *b, *c;      // tableau: (stages, stages), (stages), (stages)
    const float* nodes;          // (steps + 1), times of the grid
    const int32_t* kept_nodes;   // (kept), which nodes are returned, rising
    const float* control;        // (samples, P)
    const float* state;          // (samples, points, dim), at nodes[0]
    float* states;               // (kept, samples, points, dim)
    float* log_dets;             // (kept, samples, points), or null
    float* inputs;               // (samples, points, evaluations, padded dim), or null: kept for the backward pass
    float* units;                // (samples, points, evaluations, padded hidden), likewise
    const float* grad_states;    // as states
    const float* grad_log_dets;  // as log_dets, or null
    float* grad_control;         // as control, or null
    float* grad_state;           // as state
};

int32_t lanes(int32_t dim) {
#if defined(__AVX512F__)
    return dim > 8 ? 16 : 8;
#else
    return 8;
#endif
}
}

namespace {

// A sample's weights as matrices with padded rows; points into the packed weights where nothing needs padding.
template <int W> struct Weights {
    const float *w1, *b1, *s, *w2, *b2;
};

// Scratch of one thread.
template <int W> struct Worker {
    const Problem& p;
    const int d, h, dp, hp, evaluations;
    const bool direct;
    std::vector<float> packed, w1t, w2t, effects, rates, state, point, unit, rate_grads, unit_grads, times, values, grad;

    explicit Worker(const Problem& problem)
        : p(problem), d(p.dim), h(p.hidden), dp(round_up(d, W)), hp(round_up(h, W)), evaluations(p.steps * p.stages),
          direct(d == dp && h == hp) {
        rates.resize((size_t)p.stages * dp);
        state.resize(dp);
        point.resize(dp);
        unit.resize(hp);
        times.resize(evaluations);
        for (int i = 0; i < p.steps; i++)
            for (int s = 0; s < p.stages; s++)
                times[i * p.stages + s] = p.nodes[i] + p.c[s] * (p.nodes[i + 1] - p.nodes[i]);
    }

    int rows1() const { return d + 1 + p.sees_time; }
    size_t packed_size() const { return (size_t)rows1() * h + (size_t)(h + 1) * d; }
    size_t padded_size() const { return (size_t)(dp + 1 + p.sees_time) * hp + (size_t)(hp + 1) * dp; }

    Weights<W> view(const float* base) const {
        const int rows = direct ? d : dp;
        const float* b1 = base + (size_t)rows * hp;
        const float* s = p.sees_time ? b1 + hp : nullptr;
        const float* w2 = b1 + (size_t)(1 + p.sees_time) * hp;
        return {base, b1, s, w2, w2 + (size_t)hp * dp};
    }

    Weights<W> bind(int sample) {
        const float* base = p.control + sample * packed_size();
        if (direct) return view(base);
        packed.assign(padded_size(), 0.0f);
        Weights<W> w = view(packed.data());
        copy_rows(base, d, h, const_cast<float*>(w.w1), hp);
        copy_rows(base + (size_t)d * h, 1 + p.sees_time, h, const_cast<float*>(w.b1), hp);
        copy_rows(base + (size_t)rows1() * h, h, d, const_cast<float*>(w.w2), dp);
        copy_rows(base + (size_t)rows1() * h + (size_t)h * d, 1, d, const_cast<float*>(w.b2), dp);
        return w;
    }

    // The effect of a unit on itself: e_j = sum_i W1[i, j] W2[j, i]; the divergence is the sum of a'(u_j) e_j.
    void find_effects(const Weights<W>& w) {
        using S = Simd<W>;
        w2t.resize((size_t)dp * hp);
        transpose<W>(w.w2, hp, dp, w2t.data());
        effects.assign(hp, 0.0f);
        for (int i = 0; i < d; i++)
            for (int j = 0; j < hp; j += W)
                S::store(&effects[j], S::load(&effects[j]) + S::load(w.w1 + (size_t)i * hp + j) * S::load(&w2t[(size_t)i * hp + j]));
    }

    // Evaluates the field; keeps units; returns the divergence, if asked for.
    float evaluate(const Weights<W>& w, float t, const float* x, float* kept, float* rate) {
        using S = Simd<W>;
        float* u = unit.data();
        for (int j = 0; j < hp; j += W) {
            auto bias = S::load(w.b1 + j);
            S::store(u + j, w.s ? bias + t * S::load(w.s + j) : bias);
        }
        product<W, true>(w.w1, d, hp, x, u);
        typename S::vec trace = {};
        for (int j = 0; j < hp; j += W) {
            auto k = S::kept(p.activation, S::load(u + j));
            if (kept) S::store(kept + j, k);
            if (p.log_dets) trace += S::slope(p.activation, k) * S::load(&effects[j]);
            S::store(u + j, S::value(p.activation, k));
        }
        std::memcpy(rate, w.b2, dp * sizeof(float));
        product<W, true>(w.w2, h, dp, u, rate);
        float sum = 0.0f;
        if (p.log_dets)
            for (int k = 0; k < W; k++) sum += trace[k];
        return sum;
    }

    void forward(int sample) {
        const Weights<W> w = bind(sample);
        if (p.log_dets) find_effects(w);
        for (int k = 0; k < p.points; k++) {
            const size_t at = (size_t)sample * p.points + k, all = (size_t)p.samples * p.points;
            float* x = state.data();
            copy_rows(p.state + at * d, 1, d, x, dp);
            float log_det = 0.0f;
            int kept = 0;
            auto keep = [&](int node) {
                if (kept < p.kept && p.kept_nodes[kept] == node) {
                    std::memcpy(p.states + (kept * all + at) * d, x, d * sizeof(float));
                    if (p.log_dets) p.log_dets[kept * all + at] = log_det;
                    kept++;
                }
            };
            keep(0);
            for (int i = 0; i < p.steps; i++) {
                const float step = p.nodes[i + 1] - p.nodes[i];
                float gain = 0.0f;
                for (int s = 0; s < p.stages; s++) {
                    const int e = i * p.stages + s;
                    float* at_stage = p.inputs ? p.inputs + (at * evaluations + e) * dp : point.data();
                    combine(x, p.a + s * p.stages, s, step, at_stage);
                    float* kept_units = p.units ? p.units + (at * evaluations + e) * hp : nullptr;
                    gain += p.b[s] * evaluate(w, times[e], at_stage, kept_units, &rates[(size_t)s * dp]);
                }
                combine(x, p.b, p.stages, step, x);
                log_det += step * gain;
                keep(i + 1);
            }
        }
    }

    // out = x + step * sum of weights * rates
    void combine(const float* x, const float* weights, int stages, float step, float* out) {
        using S = Simd<W>;
        for (int i = 0; i < dp; i += W) {
            typename S::vec sum = {};
            for (int s = 0; s < stages; s++)
                if (weights[s] != 0.0f) sum += weights[s] * S::load(&rates[(size_t)s * dp + i]);
            S::store(out + i, S::load(x + i) + step * sum);
        }
    }

    void backward(int sample) {
        using S = Simd<W>;
        const Weights<W> w = bind(sample);
        const bool density = p.grad_log_dets != nullptr;
        if (density) find_effects(w);
        w1t.resize((size_t)hp * dp);
        w2t.resize((size_t)dp * hp);
        if (!density) transpose<W>(w.w2, hp, dp, w2t.data());
        // Rows of W1 beyond d are not there unless padded; the transposition needs whole blocks, which they are then.
        transpose<W>(w.w1, dp, hp, w1t.data());
        rate_grads.resize((size_t)evaluations * dp);
        unit_grads.resize((size_t)evaluations * hp);
        std::vector<float>& effect_grads = unit;
        effect_grads.assign(hp, 0.0f);
        float* out = nullptr;
        if (p.grad_control) {
            if (direct) {
                out = p.grad_control + sample * packed_size();
            } else {
                grad.resize(padded_size());
                out = grad.data();
            }
        }
        float* g = state.data();
        for (int k = 0; k < p.points; k++) {
            const size_t at = (size_t)sample * p.points + k, all = (size_t)p.samples * p.points;
            std::fill(state.begin(), state.end(), 0.0f);
            float log_det = 0.0f;
            int kept = p.kept - 1;
            auto receive = [&](int node) {
                if (kept >= 0 && p.kept_nodes[kept] == node) {
                    const float* from = p.grad_states + (kept * all + at) * d;
                    for (int i = 0; i < d; i++) g[i] += from[i];
                    if (density) log_det += p.grad_log_dets[kept * all + at];
                    kept--;
                }
            };
            receive(p.steps);
            for (int i = p.steps - 1; i >= 0; i--) {
                const float step = p.nodes[i + 1] - p.nodes[i];
                float* r = &rate_grads[(size_t)i * p.stages * dp];
                for (int s = 0; s < p.stages; s++)
                    for (int j = 0; j < dp; j += W) S::store(r + (size_t)s * dp + j, step * p.b[s] * S::load(g + j));
                for (int s = p.stages - 1; s >= 0; s--) {
                    const int e = i * p.stages + s;
                    const float* kept_units = p.units + (at * evaluations + e) * hp;
                    float* ug = &unit_grads[(size_t)e * hp];
                    product<W, false>(w2t.data(), d, hp, r + (size_t)s * dp, ug);
                    const float push = density ? step * p.b[s] * log_det : 0.0f;
                    for (int j = 0; j < hp; j += W) {
                        auto unit_kept = S::load(kept_units + j);
                        auto slope = S::slope(p.activation, unit_kept);
                        auto pulled = S::load(ug + j) * slope;
                        if (density) {
                            pulled += push * S::load(&effects[j]) * S::curvature(p.activation, unit_kept);
                            S::store(&effect_grads[j], S::load(&effect_grads[j]) + push * slope);
                        }
                        S::store(ug + j, pulled);
                    }
                    float* xg = point.data();
                    product<W, false>(w1t.data(), h, dp, ug, xg);
                    for (int j = 0; j < dp; j += W) S::store(g + j, S::load(g + j) + S::load(xg + j));
                    for (int q = 0; q < s; q++) {
                        const float share = step * p.a[s * p.stages + q];
                        if (share == 0.0f) continue;
                        float* to = r + (size_t)q * dp;
                        for (int j = 0; j < dp; j += W) S::store(to + j, S::load(to + j) + share * S::load(xg + j));
                    }
                }
                receive(i);
            }
            std::memcpy(p.grad_state + at * d, g, d * sizeof(float));
            if (out) weigh(at, out, k > 0);
        }
        if (out && density) add_effect_grads(effect_grads.data(), out);
        if (out && !direct) {
            Weights<W> v = view(out);
            float* to = p.grad_control + sample * packed_size();
            crop_rows(v.w1, d, hp, to, h);
            crop_rows(v.b1, 1 + p.sees_time, hp, to + (size_t)d * h, h);
            crop_rows(v.w2, h, dp, to + (size_t)rows1() * h, d);
            crop_rows(v.b2, 1, dp, to + (size_t)rows1() * h + (size_t)h * d, d);
        }
    }

    // Gradients of all weights from one point's inputs and cotangents.
    void weigh(size_t at, float* out, bool add) {
        using S = Simd<W>;
        const Weights<W> v = view(out);
        const float* x = p.inputs + at * evaluations * dp;
        const float* units = p.units + at * evaluations * hp;
        if (p.activation != TANH) {
            const size_t size = (size_t)evaluations * hp;
            values.resize(size);
            for (size_t j = 0; j < size; j += W) S::store(&values[j], S::value(p.activation, S::load(units + j)));
            units = values.data();
        }
        outer_products<W>(x, dp, d, unit_grads.data(), hp, evaluations, const_cast<float*>(v.w1), add);
        outer_products<W>(units, hp, h, rate_grads.data(), dp, evaluations, const_cast<float*>(v.w2), add);
        add_rows(nullptr, unit_grads.data(), hp, const_cast<float*>(v.b1), add);
        if (p.sees_time) add_rows(times.data(), unit_grads.data(), hp, const_cast<float*>(v.s), add);
        add_rows(nullptr, rate_grads.data(), dp, const_cast<float*>(v.b2), add);
    }

    void add_rows(const float* weights, const float* rows, int width, float* out, bool add) {
        using S = Simd<W>;
        for (int j = 0; j < width; j += W) {
            typename S::vec sum = {};
            for (int e = 0; e < evaluations; e++) {
                auto row = S::load(rows + (size_t)e * width + j);
                sum += weights ? weights[e] * row : row;
            }
            S::store(out + j, add ? S::load(out + j) + sum : sum);
        }
    }

    void add_effect_grads(const float* effect_grads, float* out) {
        using S = Simd<W>;
        const Weights<W> v = view(out);
        float* g1 = const_cast<float*>(v.w1);
        float* g2 = const_cast<float*>(v.w2);
        for (int i = 0; i < d; i++)
            for (int j = 0; j < hp; j += W) {
                float* place = g1 + (size_t)i * hp + j;
                S::store(place, S::load(place) + S::load(effect_grads + j) * S::load(&w2t[(size_t)i * hp + j]));
            }
        for (int j = 0; j < h; j++)
            for (int i = 0; i < dp; i += W) {
                float* place = g2 + (size_t)j * dp + i;
                S::store(place, S::load(place) + effect_grads[j] * S::load(&w1t[(size_t)j * dp + i]));
            }
    }
};

// Returns 0, or 1 where memory ran out (no exception may leave a thread).
template <int W> int run(const Problem& p, bool back) {
    int failed = 0;
#pragma omp parallel num_threads(p.threads) reduction(| : failed)
    {
        try {
            Worker<W> worker(p);
#pragma omp for schedule(static) nowait
            for (int i = 0; i < p.samples; i++) {
                if (back) worker.backward(i);
                else worker.forward(i);
            }
        } catch (const std::bad_alloc&) {
            failed = 1;
        }
    }
    return failed;
}

}  // namespace

extern "C" {

int32_t shallow_forward(const Problem* p) { return lanes(p->dim) == 16 ? run<16>(*p, false) : run<8>(*p, false); }

int32_t shallow_backward(const Problem* p) { return lanes(p->dim) == 16 ? run<16>(*p, true) : run<8>(*p, true); }
}
