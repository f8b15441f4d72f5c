/* Preloaded into a process: once armed, the n-th allocation of at least `least` bytes fails, alone or with all later. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

static atomic_long armed, seen, failed;
static atomic_size_t least;
static atomic_int sticky;

/* n = 0 disarms. */
void failing_malloc_arm(long n, size_t bytes, int for_all_later) {
    atomic_store(&armed, 0);
    atomic_store(&seen, 0);
    atomic_store(&failed, 0);
    atomic_store(&least, bytes);
    atomic_store(&sticky, for_all_later);
    atomic_store(&armed, n);
}

/* Failures since it was armed. */
long failing_malloc_failed(void) { return atomic_load(&failed); }

static int fails(size_t bytes) {
    long n = atomic_load(&armed);
    if (n == 0 || bytes < atomic_load(&least)) return 0;
    long number = atomic_fetch_add(&seen, 1) + 1;
    if (number != n && !(atomic_load(&sticky) && number > n)) return 0;
    atomic_fetch_add(&failed, 1);
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t bytes) { return fails(bytes) ? NULL : __libc_malloc(bytes); }

void *calloc(size_t count, size_t bytes) {
    size_t all;
    if (__builtin_mul_overflow(count, bytes, &all)) all = SIZE_MAX;
    return fails(all) ? NULL : __libc_calloc(count, bytes);
}

void *realloc(void *old, size_t bytes) { return fails(bytes) ? NULL : __libc_realloc(old, bytes); }

void *memalign(size_t alignment, size_t bytes) { return fails(bytes) ? NULL : __libc_memalign(alignment, bytes); }

void *aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }

int posix_memalign(void **out, size_t alignment, size_t bytes) {
    void *made = memalign(alignment, bytes);
    if (made == NULL) return ENOMEM;
    *out = made;
    return 0;
}
