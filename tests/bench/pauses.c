/* How long a core stood still, for everybody: the hypervisor took it away, or the kernel was busy with interrupts off.
 *
 *   pauses CORE        until its stdin ends
 *
 * It sleeps a millisecond at a time with real-time priority, so no server and no load keeps it from running (sched(7)). Prints the
 * longest time by which it was late, in seconds. Exits with 1 where it may not have that priority.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define STEP 1000000

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 2) { fprintf(stderr, "usage: pauses CORE\n"); return 2; }
    cpu_set_t core;
    CPU_ZERO(&core);
    CPU_SET(atoi(argv[1]), &core);
    struct sched_param priority = {.sched_priority = sched_get_priority_max(SCHED_FIFO)};
    if (sched_setaffinity(0, sizeof core, &core) < 0 || sched_setscheduler(0, SCHED_FIFO, &priority) < 0) { perror("sched"); return 1; }
    if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0) { perror("mlockall"); return 1; }
    double longest = 0, last = now();
    struct pollfd input = {.fd = 0, .events = POLLIN};
    struct timespec step = {.tv_nsec = STEP};
    while (ppoll(&input, 1, &step, NULL) == 0) {
        double at = now(), late = at - last - STEP / 1e9;
        if (late > longest) longest = late;
        last = at;
    }
    printf("%.6f\n", longest);
    return 0;
}
