/* Repeats recorded calls of compiled kernels, on a CPU or an emulator that Python does not run on.
 *
 *     replay CALLS RESULTS
 *
 * See recording.py for the form of both files; functions.inc names the functions.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ARGUMENTS = 16, MOST_BUFFERS = 16 };

#define FUNCTION(name) extern int64_t name();
#include "functions.inc"
#undef FUNCTION

typedef int64_t (*function)();

static const struct {
    const char *name;
    function call;
} FUNCTIONS[] = {
#define FUNCTION(name) {#name, (function)name},
#include "functions.inc"
};

typedef struct {
    void *data;
    int64_t size;
} buffer;

static FILE *calls, *results;

static void need(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "replay: %s\n", what);
        exit(2);
    }
}

static int64_t number(void)
{
    int64_t value;
    need(fread(&value, sizeof value, 1, calls) == 1, "the file of calls ends early");
    return value;
}

static buffer bytes(void)
{
    buffer made = {NULL, number()};
    made.data = aligned_alloc(64, (made.size + 64) / 64 * 64);
    need(made.data && fread(made.data, 1, made.size, calls) == (size_t)made.size, "no memory");
    return made;
}

static function named(const char *name, int64_t length)
{
    for (size_t n = 0; n < sizeof FUNCTIONS / sizeof *FUNCTIONS; n++)
        if (strlen(FUNCTIONS[n].name) == (size_t)length && !memcmp(FUNCTIONS[n].name, name, length))
            return FUNCTIONS[n].call;
    need(0, "no such function");
    return NULL;
}

static void repeat(void)
{
    buffer name = bytes(), held[MOST_BUFFERS];
    function call = named(name.data, name.size);
    intptr_t a[MOST_ARGUMENTS] = {0};
    void *lists[MOST_ARGUMENTS][MOST_BUFFERS];
    int num_held = 0;
    int64_t count = number();
    need(count <= MOST_ARGUMENTS, "too many arguments");
    for (int64_t n = 0; n < count; n++) {
        int64_t length = number(); /* -2: a number, -1: a buffer, else a list of so many */
        if (length == -2) {
            a[n] = number();
            continue;
        }
        need(num_held + (length < 0 ? 1 : length) <= MOST_BUFFERS, "too many buffers");
        for (int64_t k = 0; k < (length < 0 ? 1 : length); k++)
            lists[n][k] = (held[num_held++] = bytes()).data;
        a[n] = length < 0 ? (intptr_t)lists[n][0] : (intptr_t)lists[n];
    }
    call(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13],
         a[14], a[15]);
    for (int n = 0; n < num_held; n++) {
        fwrite(held[n].data, 1, held[n].size, results);
        free(held[n].data);
    }
    free(name.data);
}

int main(int count, char **arguments)
{
    need(count == 3, "replay CALLS RESULTS");
    calls = fopen(arguments[1], "rb");
    results = fopen(arguments[2], "wb");
    need(calls && results, "a file cannot be opened");
    for (int64_t left = number(); left; left--)
        repeat();
    return fclose(results) != 0;
}
