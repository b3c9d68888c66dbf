/* A server that forks for each connection and does nothing else: the least a process per connection can cost.
 *
 *   forking ADDRESS PORT       echoes until the client closes
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void reap(int number) {
    int saved = errno;
    (void)number;
    while (waitpid(-1, NULL, WNOHANG) > 0);
    errno = saved;
}

int main(int argc, char **argv) {
    if (argc != 3) { fprintf(stderr, "usage: forking ADDRESS PORT\n"); return 2; }
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    if (inet_pton(AF_INET, argv[1], &at.sin_addr) != 1) return 2;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 1024) < 0) { perror("listen"); return 1; }
    struct sigaction action = {.sa_handler = reap, .sa_flags = SA_RESTART};
    sigaction(SIGCHLD, &action, NULL);
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) continue;
        pid_t pid = fork();
        if (pid == 0) {
            char data[65536];
            ssize_t size;
            close(listener);
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            while ((size = read(fd, data, sizeof data)) > 0)
                if (write(fd, data, size) != size) break;
            _exit(0);
        }
        close(fd);
    }
}
