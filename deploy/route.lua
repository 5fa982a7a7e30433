-- Orthanc hands every CT and MR series that is complete on to the node, in one association. Results are of
-- other modalities: they stay where they are.
function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] == 'CT' or tags['Modality'] == 'MR' then
    local asked = {}
    asked['Resources'] = { seriesId }
    asked['Synchronous'] = false
    RestApiPost('/modalities/zoomseg/store', DumpJson(asked), true)
  end
end
