// An allocator for tests, preloaded: of what posix_memalign gives, the page behind (GUARD=end) or before it (GUARD=start)
// may not be touched, nor the memory once it is free; new memory is full of NaNs.

#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096UL
#define ARENA (1UL << 44)

extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static char *arena;
static int at_end;
static _Atomic size_t next;

__attribute__((constructor)) static void reserve(void) {
  const char *where = getenv("GUARD");
  at_end = where && !strcmp(where, "end");
  char *found = mmap(0, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  arena = found == MAP_FAILED ? NULL : found;
}

// A page with the size, one that may not be touched, the memory in whole pages, another.
int posix_memalign(void **memory, size_t alignment, size_t size) {
  if (!arena || alignment > 64 || size == 0) {
    *memory = __libc_memalign(alignment, size);
    return *memory ? 0 : ENOMEM;
  }
  const size_t used = (size + 63) / 64 * 64, body = (used + PAGE - 1) / PAGE * PAGE;
  char *head = arena + atomic_fetch_add(&next, body + 3 * PAGE), *first = head + 2 * PAGE;
  if (first + body + PAGE > arena + ARENA) abort();
  if (mprotect(head, PAGE, PROT_READ | PROT_WRITE) || mprotect(first, body, PROT_READ | PROT_WRITE)) return ENOMEM;
  *(size_t *)head = body;
  memset(first, 0xff, body);
  *memory = at_end ? first + body - used : first;
  return 0;
}

void free(void *memory) {
  char *here = memory;
  if (!arena || here < arena || here >= arena + ARENA) {
    __libc_free(memory);
    return;
  }
  char *first = (char *)((uintptr_t)here / PAGE * PAGE);  // it begins in the first of its pages
  const size_t body = *(size_t *)(first - 2 * PAGE);
  madvise(first, body, MADV_DONTNEED);
  mprotect(first, body, PROT_NONE);
}
