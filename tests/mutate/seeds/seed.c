/* A C library with what the dynamic linker has to do for one: start and end functions, thread-local memory, imports with
   versions, function pointers in data, an indirect function, and the symbol that a plugin exports. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static __thread int per_thread = 7;
static __thread char per_thread_zeros[32];
static int started;

static int first(const char *text) { return (int)strlen(text) + per_thread; }
static int second(const char *text) { return atoi(text) + per_thread_zeros[0]; }

int (*const seed_functions[])(const char *) = {first, second, atoi};
const char *seed_names[] = {"first", "second", "atoi"};
const void *const qtasks_plugin_root_1[] = {seed_functions, seed_names, &started};

static int (*choose(void))(const char *) { return first; }
int seed_indirect(const char *text) __attribute__((ifunc("choose")));

__attribute__((constructor)) static void start(void)
{
    char text[32];
    snprintf(text, sizeof text, "%d", per_thread);
    started = second(text) + seed_indirect(text);
}

__attribute__((destructor)) static void end(void)
{
    started = 0;
}

int seed_call(unsigned index, const char *text)
{
    if (index >= sizeof seed_functions / sizeof *seed_functions)
        abort();
    return seed_functions[index](text) + started;
}
