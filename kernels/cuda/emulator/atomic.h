// The atomic functions, for the types that CUDA has them for; each returns what was there before.
//
// They are in the runtime, as blocks may run on several operating-system threads, and as the
// sanitize build has to tell them from plain loads and stores.
#pragma once

#pragma GCC visibility push(default)

int atomicAdd(int* p, int v);
unsigned atomicAdd(unsigned* p, unsigned v);
unsigned long long atomicAdd(unsigned long long* p, unsigned long long v);
float atomicAdd(float* p, float v);
double atomicAdd(double* p, double v);

int atomicSub(int* p, int v);
unsigned atomicSub(unsigned* p, unsigned v);

int atomicExch(int* p, int v);
unsigned atomicExch(unsigned* p, unsigned v);
unsigned long long atomicExch(unsigned long long* p, unsigned long long v);
float atomicExch(float* p, float v);

int atomicMin(int* p, int v);
unsigned atomicMin(unsigned* p, unsigned v);
long long atomicMin(long long* p, long long v);
unsigned long long atomicMin(unsigned long long* p, unsigned long long v);

int atomicMax(int* p, int v);
unsigned atomicMax(unsigned* p, unsigned v);
long long atomicMax(long long* p, long long v);
unsigned long long atomicMax(unsigned long long* p, unsigned long long v);

int atomicAnd(int* p, int v);
unsigned atomicAnd(unsigned* p, unsigned v);
unsigned long long atomicAnd(unsigned long long* p, unsigned long long v);

int atomicOr(int* p, int v);
unsigned atomicOr(unsigned* p, unsigned v);
unsigned long long atomicOr(unsigned long long* p, unsigned long long v);

int atomicXor(int* p, int v);
unsigned atomicXor(unsigned* p, unsigned v);
unsigned long long atomicXor(unsigned long long* p, unsigned long long v);

unsigned atomicInc(unsigned* p, unsigned last);  // old >= last ? 0 : old + 1
unsigned atomicDec(unsigned* p, unsigned last);  // old == 0 || old > last ? last : old - 1

// Writes v if `expected` is there.
int atomicCAS(int* p, int expected, int v);
unsigned atomicCAS(unsigned* p, unsigned expected, unsigned v);
unsigned long long atomicCAS(unsigned long long* p, unsigned long long expected, unsigned long long v);

#pragma GCC visibility pop
