/* SPDX-License-Identifier: GPL-2.0-only */
/* The Internet checksum (RFC 1071), over 32-bit words in whatever byte order: only a carry moves. */
#ifndef MIDSTREAM_CHECKSUM_H
#define MIDSTREAM_CHECKSUM_H

#include "bpf.h"
#include "packet.h"

/* RFC 9293, section 3.1: the data offset has four bits, so at most ten words of options follow. */
#define MAX_OPTION_WORDS 10

/* A sum of 32-bit words, folded to 16 bits. */
static __always_inline __u16 folded(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static __always_inline __u64 sum_of_words(const void *data, const int words)
{
	const __u32 *word = data;
	__u64 sum = 0;

	for (int i = 0; i < words; i++)
		sum += word[i];
	return sum;
}

/* Are both checksums of the packet right, given the length of its payload and the sum over it?
 * Not inline, so that the verifier looks at its loop once and not on every path that leads here.
 */
__attribute__((noinline)) int is_intact(struct xdp_md *ctx, __u32 length, __u64 payload_sum)
{
	const void *end = (void *)(long)ctx->data_end;
	const struct headers *h = (void *)(long)ctx->data;
	const __u32 *option = (const void *)(h + 1);
	__u64 sum = payload_sum;

	if ((const void *)(h + 1) > end || folded(sum_of_words(&h->ip, sizeof(h->ip) / 4)) != 0xffff)
		return false;
	/* The pseudo-header: addresses, protocol, length of the segment. */
	sum += sum_of_words(&h->ip.saddr, 2) + bswap16(IPPROTO_TCP) + bswap16(length + h->tcp.doff * 4);
	sum += sum_of_words(&h->tcp, sizeof(h->tcp) / 4);
	if (h->tcp.doff == 8 && (const void *)(option + 3) <= end)
		return folded(sum + sum_of_words(option, 3)) == 0xffff; /* a timestamp: nearly every segment */
	for (int i = 0; i < MAX_OPTION_WORDS; i++, option++) {
		if (i >= h->tcp.doff - 5)
			break;
		if ((const void *)(option + 1) > end)
			return false;
		sum += *option;
	}
	return folded(sum) == 0xffff;
}

#endif
