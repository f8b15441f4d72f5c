// Scores a FASTA file in shards and joins them:
//   nextflow run score.nf --model runs/mine --fasta proteins.fa.gz --shards 8
params.shards = 4

process SCORE {
    cpus 1

    input:
    tuple val(i), path(model), path(fasta)

    output:
    tuple path("${i}.tsv"), path("${i}.tsv.meta.json")

    script:
    """
    protperf score ${model} ${fasta} --shard ${i}/${params.shards} -j ${task.cpus} -q -o ${i}.tsv
    """
}

process MERGE {
    publishDir '.', mode: 'copy'

    input:
    path(shards)

    output:
    path('scores.tsv')

    script:
    """
    protperf merge ${shards.findAll { it.name.endsWith('.tsv') }.join(' ')} -q -o scores.tsv
    """
}

workflow {
    jobs = Channel.of(1..params.shards).map { i -> tuple(i, file(params.model), file(params.fasta)) }
    MERGE(SCORE(jobs).flatten().collect())
}
