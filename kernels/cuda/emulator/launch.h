// A kernel's arguments come as an array of pointers to their values, as cuLaunchKernel() takes them. The templates here
// know the kernel's type, and make of it the call, and the text with which Python checks the arguments beforehand.
#pragma once

#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#include "types.h"

namespace emulator {

struct Request;  // what to launch: see runtime.h

#pragma GCC visibility push(default)
using Call = void (*)(const void* kernel, void** arguments);
int run(Request* request, Call call, const void* kernel, char* (*marker)());
#pragma GCC visibility pop

// Where this module's shared arrays are: its thread-local memory is they and this byte. See Worker::find_shared.
inline thread_local char marker;

template <class... P, std::size_t... I>
void call(void (*kernel)(P...), [[maybe_unused]] void** arguments, std::index_sequence<I...>)
{
    kernel(*static_cast<P*>(arguments[I])...);
}

template <class... P>
int launch(void (*kernel)(P...), Request* request)
{
    static_assert((!std::is_reference_v<P> && ...), "a kernel takes its arguments by value");
    const auto call_it = [](const void* kernel, void** arguments) {
        call(*static_cast<void (*const*)(P...)>(kernel), arguments, std::index_sequence_for<P...>{});
    };
    return run(request, call_it, &kernel, []() -> char* { return &marker; });
}

// NumPy's code of a type: "f4", "u8"; "?" for a struct, which any array may stand for.
template <class T>
void type_code(char* code)
{
    if constexpr (std::is_arithmetic_v<T>) {
        const char kind = std::is_same_v<T, bool> ? 'b' : std::is_floating_point_v<T> ? 'f' : T(-1) < T(0) ? 'i' : 'u';
        snprintf(code, 8, "%c%d", kind, int(sizeof(T)));
    } else {
        strcpy(code, "?");
    }
}

// "*f4" for float*, "&f4" for const float*, "f4" for float.
template <class P>
void parameter_code(char* code)
{
    if constexpr (std::is_pointer_v<P>) {
        using Target = std::remove_pointer_t<P>;
        *code++ = std::is_const_v<Target> ? '&' : '*';
        type_code<std::remove_cv_t<Target>>(code);
    } else {
        type_code<std::remove_cv_t<P>>(code);
    }
}

// The codes of all parameters, separated by blanks.
template <class... P>
const char* signature(void (*)(P...))
{
    static char text[16 * (sizeof...(P) + 1)];
    char* end = text;
    ((parameter_code<P>(end), end += strlen(end), *end++ = ' '), ...);
    *end = 0;
    return text;
}

}  // namespace emulator
