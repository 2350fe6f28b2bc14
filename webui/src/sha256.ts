// SHA-256 (FIPS 180-4): browsers have it for pages with TLS only.

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
const rounds = Int32Array.of(
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
  0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
  0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
  0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
  0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
  0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
);

const right = (x: number, n: number): number => (x >>> n) | (x << (32 - n));

// Digest takes any number of bytes, a few at a time.
export class Digest {
  private readonly state = Int32Array.of(0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19);
  private readonly block = new Uint8Array(64);
  private readonly view = new DataView(this.block.buffer);
  private readonly words = new Int32Array(64);
  private length = 0; // bytes so far

  update(bytes: Uint8Array): this {
    for (let at = 0; at < bytes.length; ) {
      const used = this.length % 64;
      const some = bytes.subarray(at, at + 64 - used);
      this.block.set(some, used);
      this.length += some.length;
      at += some.length;
      if (this.length % 64 === 0) this.mix();
    }
    return this;
  }

  // hex ends it.
  hex(): string {
    const bits = this.length * 8;
    this.update(Uint8Array.of(0x80));
    while (this.length % 64 !== 56) this.update(Uint8Array.of(0));
    this.view.setUint32(56, Math.floor(bits / 2 ** 32));
    this.view.setUint32(60, bits >>> 0);
    this.mix();
    return Array.from(this.state, (x) => (x >>> 0).toString(16).padStart(8, "0")).join("");
  }

  private mix(): void {
    const w = this.words;
    const at = (i: number): number => w[i] ?? 0;
    for (let i = 0; i < 16; i++) w[i] = this.view.getInt32(4 * i);
    for (let i = 16; i < 64; i++) {
      const x = at(i - 15);
      const y = at(i - 2);
      w[i] = at(i - 16) + at(i - 7) + (right(x, 7) ^ right(x, 18) ^ (x >>> 3)) + (right(y, 17) ^ right(y, 19) ^ (y >>> 10));
    }
    let [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0] = this.state;
    for (let i = 0; i < 64; i++) {
      const one = (h + (right(e, 6) ^ right(e, 11) ^ right(e, 25)) + ((e & f) ^ (~e & g)) + (rounds[i] ?? 0) + at(i)) | 0;
      const two = ((right(a, 2) ^ right(a, 13) ^ right(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((x, i) => (this.state[i] = (this.state[i] ?? 0) + x));
  }
}
