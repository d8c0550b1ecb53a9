/* A stock client of libxenvchan, as an independent peer of postbox-broker: appends three entries and leaves.
 * xen-e2e-vchan PATH NEXT-NUMBER; PATH is where the broker has published for this guest. */
#include <libxenvchan.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENTRIES 3

static const char text[] = "from libxenvchan";

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    uint64_t number = strtoull(argv[2], NULL, 10);
    struct libxenvchan *vchan = libxenvchan_client_init(NULL, 0, argv[1]);
    if (!vchan) {
        perror("libxenvchan_client_init");
        return 1;
    }
    vchan->blocking = 1;
    for (int n = 0; n < ENTRIES; n++, number++) {
        /* Length, kind 1 (append), number; padded to 8 bytes. */
        unsigned char frame[32] = {0};
        uint32_t length = sizeof(text) - 1;
        memcpy(frame, &length, 4);
        frame[4] = 1;
        memcpy(frame + 8, &number, 8);
        memcpy(frame + 16, text, length);
        if (libxenvchan_send(vchan, frame, sizeof(frame)) != (int)sizeof(frame)) {
            perror("libxenvchan_send");
            return 1;
        }
    }
    printf("%d frames sent, server %s\n", ENTRIES, libxenvchan_is_open(vchan) == 1 ? "up" : "not up");
    libxenvchan_close(vchan);
    return 0;
}
